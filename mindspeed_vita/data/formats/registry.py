"""Adapters by name. One is a function from a file to rows of the schema in sample.py; docs/data.md shows how to write one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from mindspeed_vita.data.formats.parquet import parquet_rows
from mindspeed_vita.data.formats.webdataset import webdataset_rows

Adapter = Callable[[str], Iterator[dict[str, Any]]]
"""Path of a file -> its rows, in order. Raises ValueError naming file, row and field of what it cannot read."""

_ADAPTERS: dict[str, Adapter | None] = {"json": None, "webdataset": webdataset_rows, "parquet": parquet_rows}
_BY_SUFFIX = {".tar": "webdataset", ".parquet": "parquet"}


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


def adapter_for(path: str, name: str = "") -> Adapter | None:
    """What reads a file; None for JSONL and JSON arrays, plain or gzipped.

    Args:
        path: the file; its suffix decides where no name is given.
        name: format of the mixture's entry, or nothing.

    Raises:
        ValueError: no such format.
    """
    name = name or _BY_SUFFIX.get(Path(path).suffix, "json")
    if name not in _ADAPTERS:
        raise ValueError(f"{path}: format {name!r} is unknown; expected one of {', '.join(_ADAPTERS)}, or a plugin that registers it")
    return _ADAPTERS[name]


def holds_media(path: str) -> bool:
    """Whether pictures lie inside the file itself, so that its own folder is their root."""
    return Path(path).suffix in _BY_SUFFIX
