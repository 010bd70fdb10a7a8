"""Adapters by name. One is a function from a file to rows of the schema in sample.py; docs/data.md shows how to write one."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mindspeed_vita.data.formats.parquet import group_rows, group_sizes, parquet_rows
from mindspeed_vita.data.formats.webdataset import webdataset_rows

Adapter = Callable[[str], Iterator[dict[str, Any]]]
"""Path of a file -> its rows, in order. Raises ValueError naming file, row and field of what it cannot read."""


@dataclass(frozen=True)
class PartReader:
    """What reads parts of a file apart from each other. Its functions are those of a module, so that processes find them."""

    sizes: Callable[[str], list[int]]
    """Path of a file -> bytes of each part."""
    rows: Callable[[str, range], Iterator[tuple[int, dict[str, Any]]]]
    """Path and numbers of consecutive parts -> their rows, each with its number in the file, from 1."""


_ADAPTERS: dict[str, Adapter | None] = {"json": None, "webdataset": webdataset_rows, "parquet": parquet_rows}
_PARTS = {"parquet": PartReader(group_sizes, group_rows)}
_RULES = {"webdataset": "+2"}
JSON_SUFFIXES = (".jsonl", ".json", ".ndjson")
"""Files of JSON rows; each also with .gz after it."""
_BY_SUFFIX = {**dict.fromkeys(JSON_SUFFIXES, "json"), ".tar": "webdataset", ".parquet": "parquet"}


def format_names() -> tuple[str, ...]:
    """Names that a mixture's entry may give as format."""
    return tuple(_ADAPTERS)


def register_format(name: str, adapter: Adapter) -> None:
    """Adds a format; saying the same again changes nothing.

    Raises:
        ValueError: the name is taken by another.
    """
    if _ADAPTERS.get(name, adapter) is not adapter:
        raise ValueError(f"format {name!r} is registered already")
    _ADAPTERS[name] = adapter


def suffix_of(path: str | Path) -> str:
    """Suffix of a file in lower case; of x.jsonl.gz, whose content is compressed, that is .jsonl."""
    stem, suffix = os.path.splitext(os.path.basename(path))
    inner = os.path.splitext(stem)[1].lower()
    return inner if suffix.lower() == ".gz" and inner in JSON_SUFFIXES else suffix.lower()


def format_of(path: str, name: str = "") -> str:
    """Name of the format that a file is read in.

    Args:
        path: the file; its suffix decides where no name is given.
        name: format of the mixture's entry, or nothing.

    Raises:
        ValueError: no such format, or no name and a suffix that tells none.
    """
    if not name and suffix_of(path) not in _BY_SUFFIX:
        found = f"files with the suffix {suffix_of(path)!r} are" if suffix_of(path) else "a file without suffix is"
        raise ValueError(
            f"{path}: {found} not read; expected {', '.join(JSON_SUFFIXES)} (each also with .gz), .tar or .parquet, or a format: in the "
            f"mixture's entry ({', '.join(_ADAPTERS)}); `vita data import` converts .csv, .tsv and folders of pictures"
        )
    name = name or _BY_SUFFIX[suffix_of(path)]
    if name not in _ADAPTERS:
        raise ValueError(f"{path}: format {name!r} is unknown; expected one of {', '.join(_ADAPTERS)}, or a plugin that registers it")
    return name


def adapter_for(path: str, name: str = "") -> Adapter | None:
    """What reads a file; None for JSONL and JSON arrays, plain or gzipped. Arguments and errors are those of format_of."""
    return _ADAPTERS[format_of(path, name)]


def part_reader(path: str, name: str = "") -> PartReader | None:
    """What reads parts of a file apart from each other; None where its format has no parts. Arguments and errors are those of format_of."""
    return _PARTS.get(format_of(path, name))


def holds_media(path: str, name: str = "") -> bool:
    """Whether pictures lie inside the file itself, so that its own folder is their root. Arguments are those of format_of."""
    return (name or _BY_SUFFIX.get(suffix_of(path), "")) in ("webdataset", "parquet")


def rules_of(path: str, name: str = "") -> str:
    """Changes when the format's rules give other rows for the same file, so that its index is made anew. Arguments as format_of."""
    return _RULES.get(format_of(path, name), "")
