"""MMMU as its parquet has it: pictures inside the rows, <image 1> in questions and options, multiple-choice and open questions."""

from __future__ import annotations

import re

from mindspeed_vita.evaluation.choice.question import Question
from mindspeed_vita.evaluation.choice.schemas.schema import Schema, Sources, as_list, letter, optional, options_of, text, texts
from mindspeed_vita.evaluation.choice.table import Row

NUMBERED = re.compile(r"<image (\d+)>")
_DISCIPLINES = {
    "Art and Design": ("Art", "Art_Theory", "Design", "Music"),
    "Business": ("Accounting", "Economics", "Finance", "Manage", "Marketing"),
    "Science": ("Biology", "Chemistry", "Geography", "Math", "Physics"),
    "Health and Medicine": (
        "Basic_Medical_Science", "Clinical_Medicine", "Diagnostics_and_Laboratory_Medicine", "Pharmacy", "Public_Health",
    ),
    "Humanities and Social Science": ("History", "Literature", "Psychology", "Sociology"),
    "Tech and Engineering": (
        "Agriculture", "Architecture_and_Engineering", "Computer_Science", "Electronics", "Energy_and_Power", "Materials",
        "Mechanical_Engineering",
    ),
}  # fmt: skip
_DISCIPLINE_OF = {subject: discipline for discipline, subjects in _DISCIPLINES.items() for subject in subjects}
_ID = re.compile(r"(?:dev|validation|test)_(\w+?)_\d+$")


def place_pictures(question: str, options: tuple[str, ...], pictures: dict[int, str]) -> tuple[str, tuple[str, ...], tuple[str, ...]]:
    """Question and options with <image> for <image 1>, and the pictures in the order of these tags. A picture without a tag goes first.

    Args:
        question, options: as in the file.
        pictures: paths by number.

    Raises:
        ValueError: a tag names a picture that the row does not have.
    """
    named = [int(found) for part in (question, *options) for found in NUMBERED.findall(part)]
    missing = sorted(set(named) - set(pictures))
    if missing:
        raise ValueError(f"column image_{missing[0]} is empty, and the question names <image {missing[0]}>")
    first = [found for found in sorted(pictures) if found not in named]
    question = "<image>\n" * len(first) + NUMBERED.sub("<image>", question)
    return question, tuple(NUMBERED.sub("<image>", option) for option in options), tuple(pictures[found] for found in (*first, *named))


def _read(row: Row, sources: Sources) -> Question:
    pictures = {}
    for number in range(1, 8):
        if f"image_{number}" in row.values:
            try:
                pictures[number] = sources.pictures.of_struct(row.values[f"image_{number}"], sources.media)
            except ValueError as error:
                raise ValueError(f"column image_{number} {error}") from error
    found = texts(row, "options") if "options" in row.values else ()
    is_open = optional(row, "question_type") == "open" or not found
    options = () if is_open else options_of(found, "options")
    question, shown, images = place_pictures(text(row, "question"), options, pictures)
    identity = text(row, "id")
    subject = _ID.match(identity)
    groups = {}
    if subject is not None:
        groups = {"discipline": _DISCIPLINE_OF.get(subject.group(1), "other"), "subject": subject.group(1)}
    if "topic_difficulty" in row.values:
        groups["difficulty"] = text(row, "topic_difficulty")
    groups["kind"] = "open" if is_open else "multiple choice"
    answer = letter(row, "answer", options) if options else open_answers(row)
    return Question(id=identity, text=question, options=shown, answer=answer, images=images, groups=groups)


def open_answers(row: Row) -> tuple[str, ...]:
    """The texts that count as right; none where the file says "?" or nothing, as that of a test does."""
    if "answer" not in row.values or row.values["answer"] == "?":
        return ()
    found = as_list(row.values["answer"])
    return tuple(str(item) for item in found) if found else (text(row, "answer"),)


SCHEMA = Schema(
    name="mmmu",
    benchmarks="MMMU (parquet)",
    columns=(("id",), ("question",), ("question_type", "subfield"), ("image_1",)),
    read=_read,
)
