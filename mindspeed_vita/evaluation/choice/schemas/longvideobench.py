"""LongVideoBench: its JSON with `candidates`, or its parquet with option0 to option4. The right option is a number."""

from __future__ import annotations

from mindspeed_vita.evaluation.choice.question import LETTERS, Question
from mindspeed_vita.evaluation.choice.schemas.schema import (
    Schema,
    Sources,
    find_media,
    number,
    optional,
    options_of,
    text,
    texts,
)
from mindspeed_vita.evaluation.choice.table import Row

_GROUPS = {"duration": "duration_group", "question category": "question_category", "topic": "topic_category", "level": "level"}
_NO_OPTION = "N/A"


def _read(row: Row, sources: Sources) -> Question:
    if "candidates" in row.values:
        found = texts(row, "candidates")
    else:
        columns = [f"option{place}" for place in range(5)]
        found = tuple(text(row, name) for name in columns if row.values.get(name, _NO_OPTION) != _NO_OPTION)
    options = options_of(found, "candidates")
    name = text(row, "video_path")
    subtitles = ""
    if sources.subtitles is not None and "subtitle_path" in row.values:
        subtitles = find_media(sources.subtitles, [text(row, "subtitle_path")], "subtitle_path")
    return Question(
        id=text(row, "id"),
        text=text(row, "question"),
        options=options,
        answer=_answer(row, len(options)),
        videos=(find_media(sources.media, [name, f"videos/{name}"], "video_path"),),
        subtitles=subtitles,
        subtitles_start=number(row, "starting_timestamp_for_subtitles") if "starting_timestamp_for_subtitles" in row.values else 0.0,
        groups={group: optional(row, key) for group, key in _GROUPS.items() if key in row.values},
    )


def _answer(row: Row, num_options: int) -> tuple[str, ...]:
    """The right letter; none in the file of the test, which says none or -1."""
    if "correct_choice" not in row.values or number(row, "correct_choice") < 0:
        return ()
    choice = number(row, "correct_choice")
    if choice != int(choice) or choice >= num_options:
        raise ValueError(f"column correct_choice holds {choice:g}; expected a number from 0 to {num_options - 1}")
    return (LETTERS[int(choice)],)


SCHEMA = Schema(
    name="longvideobench",
    benchmarks="LongVideoBench (JSON or parquet)",
    columns=(("video_path",), ("question",), ("candidates", "option0"), ("duration_group",), ("id",)),
    read=_read,
    reads_subtitles=True,
)
