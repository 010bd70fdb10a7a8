"""Video-MME: one row a question, as its parquet has it, and as VLMEvalKit's TSV has it. Videos and .srt files are named by videoID."""

from __future__ import annotations

from mindspeed_vita.evaluation.choice.question import Question
from mindspeed_vita.evaluation.choice.schemas.schema import Schema, Sources, cell, find_media, letter, optional, options_of, text, texts
from mindspeed_vita.evaluation.choice.table import Row

_ENDINGS = (".mp4", ".MP4", ".mkv", ".webm", "")
_GROUPS = {"duration": "duration", "domain": "domain", "sub-category": "sub_category", "task": "task_type"}


def _read(row: Row, sources: Sources) -> Question:
    cell(row, "videoID", "video")
    name, column = (text(row, "videoID"), "videoID") if "videoID" in row.values else (text(row, "video"), "video")
    options = options_of(texts(row, "options", "candidates"), "options")
    paths = [optional(row, "video_path")] if "video_path" in row.values else []
    paths += [f"{folder}{name}{ending}" for folder in ("", "data/", "video/", "videos/") for ending in _ENDINGS]
    subtitles = ""
    if sources.subtitles is not None and (sources.subtitles / f"{name}.srt").is_file():  # some videos have none
        subtitles = str(sources.subtitles / f"{name}.srt")
    return Question(
        id=optional(row, "question_id", "index") or row.place,
        text=text(row, "question"),
        options=options,
        answer=letter(row, "answer", options),
        videos=(find_media(sources.media, paths, column),),
        subtitles=subtitles,
        groups={group: optional(row, key) for group, key in _GROUPS.items() if key in row.values},
    )


SCHEMA = Schema(
    name="video-mme",
    benchmarks="Video-MME (parquet, JSON, or VLMEvalKit's TSV)",
    columns=(("videoID", "video"), ("options", "candidates"), ("question",), ("sub_category",), ("task_type",)),
    read=_read,
    reads_subtitles=True,
)
