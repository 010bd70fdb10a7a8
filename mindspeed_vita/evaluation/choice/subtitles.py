"""Subtitles: SubRip files (Video-MME) and LongVideoBench's JSON, and which lines are shown while frames are taken."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_TIMES = re.compile(r"(\d+):(\d+):(\d+[,.]\d+)\s*-->\s*(\d+):(\d+):(\d+[,.]\d+)")
_MARKUP = re.compile(r"<[^>]*>|\{\\[^}]*\}")


@dataclass(frozen=True)
class Line:
    """A line of subtitles."""

    start: float
    """Seconds."""
    end: float
    """Seconds."""
    text: str


def read_subtitles(path: Path) -> list[Line]:
    """The lines of a file, without markup.

    Raises:
        ValueError: it cannot be read.
    """
    try:
        content = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"subtitles {path} cannot be read ({error})") from error
    return _json_lines(path, content) if path.suffix == ".json" else _srt_lines(content)


def _srt_lines(content: str) -> list[Line]:
    lines = []
    for block in re.split(r"\n\s*\n", content.replace("\r\n", "\n")):
        found = _TIMES.search(block)
        if found is not None:
            start, end = (_seconds(*found.groups()[first : first + 3]) for first in (0, 3))
            text = " ".join(_MARKUP.sub("", block[found.end() :]).split())
            lines += [Line(start, end, text)] if text else []
    return lines


def _seconds(hours: str, minutes: str, seconds: str) -> float:
    return 3600 * int(hours) + 60 * int(minutes) + float(seconds.replace(",", "."))


def _json_lines(path: Path, content: str) -> list[Line]:
    """LongVideoBench writes {"start", "end", "line"} with texts as times, or {"timestamp": [start, end], "text"}; an end may be missing."""
    try:
        return [_json_line(row) for row in json.loads(content)]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"subtitles {path} are none of LongVideoBench's ({type(error).__name__}: {error})") from error


def _json_line(row: Any) -> Line:
    if "timestamp" in row:
        start, end = row["timestamp"]
        return Line(float(start), float("inf") if end is None else float(end), str(row["text"]))
    return Line(_seconds(*row["start"].split(":")), _seconds(*row["end"].split(":")), str(row["line"]))


def shown_at(lines: Sequence[Line], times: Sequence[float], *, start: float = 0.0) -> list[str]:
    """The texts of the lines that are shown at one of the times, each once, in their order.

    Args:
        lines: of a file.
        times: of the frames, in seconds of the video.
        start: where the video begins, in seconds of the subtitles' clock.
    """
    return [line.text for line in lines if any(line.start <= start + time < line.end for time in times)]
