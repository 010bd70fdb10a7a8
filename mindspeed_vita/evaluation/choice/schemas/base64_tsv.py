"""VLMEvalKit's TSV for benchmarks of pictures: MMBench, MMStar, MMMU, AI2D, HallusionBench, OCRBench and others.

Pictures are base64 or paths. A question has one column for each option, or is open.
"""

from __future__ import annotations

from mindspeed_vita.evaluation.choice.question import LETTERS, Question
from mindspeed_vita.evaluation.choice.schemas.mmmu import NUMBERED, open_answers, place_pictures
from mindspeed_vita.evaluation.choice.schemas.schema import Schema, Sources, as_list, letter, optional, text
from mindspeed_vita.evaluation.choice.table import Row

LONGEST_REFERENCE = 64
"""A cell of at most so many characters is no picture in base64; it names the row that holds the picture."""

_TURN = 1_000_000
"""MMBench writes the rows of one question with its options turned under index, index + 1,000,000 and so on."""
_GROUPS = {"category": ("category",), "category 2": ("l2-category", "l2_category"), "split": ("split",)}


def _read(row: Row, sources: Sources) -> Question:
    options = []
    for name in LETTERS:
        if name not in row.values:
            break
        options.append(text(row, name))
    if len(options) == 1:
        raise ValueError("column B is empty; expected at least two options")
    later = [name for name in LETTERS[len(options) :] if name in row.values]
    if later:
        raise ValueError(f"column {LETTERS[len(options)]} is empty, and column {later[0]} is not")
    pictures = dict(enumerate(_pictures(row, sources), 1))
    question, shown, images = text(row, "question"), tuple(options), tuple(pictures.values())
    if any(NUMBERED.search(part) for part in (question, *shown)):
        question, shown, images = place_pictures(question, shown, pictures)
    index = text(row, "index")
    return Question(
        id=index,
        text=question,
        options=shown,
        answer=letter(row, "answer", options) if options else open_answers(row),
        hint=optional(row, "hint"),
        images=images,
        groups={group: optional(row, *keys) for group, keys in _GROUPS.items() if any(key in row.values for key in keys)},
        circle=str(int(index) % _TURN) if options and index.isdigit() else "",
    )


def _pictures(row: Row, sources: Sources) -> list[str]:
    if "image" not in row.values:
        if "image_path" not in row.values:
            raise ValueError("columns image and image_path are empty")
        value = row.values["image_path"]
        return [str(sources.media / str(path)) for path in as_list(value) or [value]]
    value = row.values["image"]
    if isinstance(value, str) and len(value) <= LONGEST_REFERENCE:
        if value not in sources.same_picture:
            raise ValueError(f"column image names row {value}, which has no picture in base64")
        value = sources.same_picture[value]
    try:
        return [sources.pictures.of_base64(str(picture)) for picture in as_list(value) or [value]]
    except ValueError as error:
        raise ValueError(f"column image {error}") from error


SCHEMA = Schema(
    name="base64-tsv",
    benchmarks="MMBench, MMStar, MMMU, AI2D, HallusionBench, OCRBench and others (VLMEvalKit's TSV)",
    columns=(("index",), ("question",), ("image", "image_path"), ("answer", "A")),
    read=_read,
)
