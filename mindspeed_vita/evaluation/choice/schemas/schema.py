"""What a benchmark's columns mean: the interface of a schema, and cells read with one clear message for what is wrong."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional

from mindspeed_vita.evaluation.choice.question import LETTERS, Question
from mindspeed_vita.evaluation.choice.table import Row
from mindspeed_vita.evaluation.pictures import PictureFolder

_LETTERED = re.compile(r"\s*\(?([A-Z])[.):]\s*")


@dataclass(frozen=True, kw_only=True)
class Sources:
    """Where a row's media come from."""

    media: Path
    """Folder of pictures and videos."""
    subtitles: Optional[Path]
    """Folder of subtitles; None: none are asked for."""
    pictures: PictureFolder
    """Where pictures that travel inside rows are written."""
    same_picture: dict[str, str]
    """Pictures in base64 by the index of their row, for rows that name another row's picture."""


@dataclass(frozen=True, kw_only=True)
class Schema:
    """A published format."""

    name: str
    """For --schema."""
    benchmarks: str
    """Which files have it, for people."""
    columns: tuple[tuple[str, ...], ...]
    """Columns that it is known by: one of each tuple must be there."""
    read: Callable[[Row, Sources], Question]
    """A row's question. Raises ValueError with the column and what is wrong."""
    reads_subtitles: bool = False
    """Whether the benchmark has subtitles."""

    def fits(self, columns: set[str]) -> bool:
        """Whether a file with these columns can be of this schema."""
        return all(any(name in columns for name in names) for names in self.columns)


def cell(row: Row, *names: str) -> Any:
    """The value of the first of these columns that holds one.

    Raises:
        ValueError: none does.
    """
    for name in names:
        if name in row.values:
            return row.values[name]
    raise ValueError(f"column {' or '.join(names)} is empty")


def text(row: Row, *names: str) -> str:
    """As cell, as a text. Numbers are written out."""
    value = cell(row, *names)
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        raise ValueError(f"column {names[0]} holds a {type(value).__name__}; expected a text")
    return str(value)


def optional(row: Row, *names: str) -> str:
    """As text; empty where no column holds a value."""
    return text(row, *names) if any(name in row.values for name in names) else ""


def number(row: Row, name: str) -> float:
    """The number in a column.

    Raises:
        ValueError: it holds none.
    """
    value = text(row, name)
    try:
        return float(value)
    except ValueError as error:
        raise ValueError(f"column {name} holds {value!r}; expected a number") from error


def texts(row: Row, *names: str) -> tuple[str, ...]:
    """A list of texts: a list, or a cell that writes one as JSON or Python does.

    Raises:
        ValueError: it holds no such list.
    """
    value = cell(row, *names)
    found = as_list(value)
    if found is None:
        raise ValueError(f"column {names[0]} holds {_short(value)}; expected a list")
    return tuple(str(item) for item in found)


def as_list(value: Any) -> Optional[Sequence[Any]]:
    """The list that a value is or writes; None where it is none."""
    if isinstance(value, (list, tuple)):
        return value
    if not isinstance(value, str) or not value.strip().startswith("["):
        return None
    for read in (json.loads, ast.literal_eval):
        try:
            found = read(value.strip())
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
        if isinstance(found, list):
            return found
    return None


def options_of(found: Sequence[str], column: str) -> tuple[str, ...]:
    """Options without the letters that some files put before them.

    Raises:
        ValueError: fewer than two options, or more than there are letters.
    """
    if not 2 <= len(found) <= len(LETTERS):
        raise ValueError(f"column {column} has {len(found)} options; expected 2 to {len(LETTERS)}")
    marks = [_LETTERED.match(option) for option in found]
    if all(mark is not None and mark.group(1) == letter for mark, letter in zip(marks, LETTERS)):
        return tuple(option[mark.end() :].strip() for option, mark in zip(found, marks) if mark is not None)
    return tuple(option.strip() for option in found)


def letter(row: Row, column: str, options: Sequence[str], *, text_first: bool = False) -> tuple[str, ...]:
    """The right letter, which the column names by itself or by the option's text; none where the file does not say it.

    Args:
        row: of the file.
        column: that names the answer.
        options: the options' texts.
        text_first: whether "A" is option B where that option's text is "A"; otherwise it is the letter.

    Raises:
        ValueError: it names no option.
    """
    given = optional(row, column).strip()
    if not given:
        return ()
    if text_first and given in options:
        return (LETTERS[options.index(given)],)
    bare = given.strip("().").upper()
    if len(bare) == 1 and bare in LETTERS[: len(options)]:
        return (bare,)
    if given in options:
        return (LETTERS[options.index(given)],)
    raise ValueError(f"column {column} holds {_short(given)}; expected a letter up to {LETTERS[len(options) - 1]}, or an option's text")


def find_media(folder: Path, candidates: Sequence[str], column: str) -> str:
    """The first of several paths below a folder that is there.

    Raises:
        ValueError: none is.
    """
    for candidate in candidates:
        if (folder / candidate).exists():
            return str(folder / candidate)
    raise ValueError(f"column {column}: {folder} holds none of {', '.join(dict.fromkeys(candidates))}; name its folder with --media")


def _short(value: Any) -> str:
    said = repr(value)
    return said if len(said) <= 60 else said[:57] + "..."
