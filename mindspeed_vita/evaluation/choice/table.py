"""Rows of a benchmark's file: TSV, CSV, JSON, JSONL or parquet, or a folder of such files. A row that cannot be read costs only itself."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_DELIMITERS = {".tsv": "\t", ".csv": ","}
_READ = (*_DELIMITERS, ".json", ".jsonl", ".parquet")


@dataclass(frozen=True)
class Row:
    """A row of a table."""

    number: int
    """Counted over all files, from 1."""
    place: str
    """For people: file and line, or file and row where a file has no lines."""
    values: dict[str, Any] = field(default_factory=dict)
    """By column. Empty texts and missing values are left out."""
    file: str = ""
    """The file's name without its ending."""
    problem: str = ""
    """Why the row cannot be read; empty: it can."""


def read_rows(path: Path) -> list[Row]:
    """All rows of a file, or of the files of a folder in the order of their names.

    Raises:
        ValueError: no such file, none that can be read, or no rows.
    """
    if path.is_dir():
        files = sorted(file for file in path.iterdir() if file.suffix.lower() in _READ)
        if not files:
            raise ValueError(f"{path} holds no file that can be read; expected some of *{', *'.join(_READ)}")
    elif path.is_file():
        files = [path]
    else:
        raise ValueError(f"{path}: no such file; expected a benchmark's file, or a folder of them")
    rows: list[Row] = []
    for file in files:
        for place, values in _rows_of(file):
            number, name = len(rows) + 1, f"{file.name} {place}"
            if isinstance(values, str):
                rows.append(Row(number, name, file=file.stem, problem=values))
            elif isinstance(values, dict):
                rows.append(Row(number, name, {str(key): value for key, value in values.items() if _given(value)}, file.stem))
            else:
                rows.append(Row(number, name, file=file.stem, problem=f"is a {type(values).__name__}; expected an object"))
    if not rows:
        raise ValueError(f"{path} has no rows")
    return rows


def _given(value: Any) -> bool:
    """Whether a cell holds something. Exports write a missing text as an empty cell or as NaN."""
    return value is not None and value != "" and not (isinstance(value, float) and value != value)


def _rows_of(file: Path) -> Iterator[tuple[str, Any]]:
    """Places and values; in place of the values what is wrong with a row."""
    ending = file.suffix.lower()
    if ending in _DELIMITERS:
        return _delimited(file, _DELIMITERS[ending])
    if ending == ".jsonl":
        return _json_lines(file)
    if ending == ".json":
        return _json(file)
    if ending == ".parquet":
        return _parquet(file)
    raise ValueError(f"{file}: files that end with {ending!r} cannot be read; expected one of {', '.join(_READ)}")


def _delimited(file: Path, delimiter: str) -> Iterator[tuple[str, Any]]:
    before = csv.field_size_limit(sys.maxsize)  # pictures in base64 are longer than csv's limit
    try:
        with file.open(encoding="utf-8-sig", newline="") as text:
            reader = csv.reader(text, delimiter=delimiter)
            columns = next(reader, None)
            if not columns:
                raise ValueError(f"{file} has no line with the names of the columns")
            line = reader.line_num + 1
            for cells in reader:
                place, line = f"line {line}", reader.line_num + 1
                if len(cells) == len(columns):
                    yield place, dict(zip(columns, cells))
                elif cells:
                    yield place, f"has {len(cells)} cells; the first line names {len(columns)} columns"
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is not UTF-8 (byte 0x{error.object[error.start]:02x}); save it as UTF-8") from error
    finally:
        csv.field_size_limit(before)


def _json_lines(file: Path) -> Iterator[tuple[str, Any]]:
    for number, line in enumerate(file.read_bytes().split(b"\n"), 1):
        if line.strip():
            try:
                yield f"line {number}", json.loads(line)
            except (ValueError, RecursionError) as error:
                yield f"line {number}", f"is not JSON ({error})"


def _json(file: Path) -> Iterator[tuple[str, Any]]:
    try:
        content = json.loads(file.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file} is not JSON ({error})") from error
    if not isinstance(content, list):
        raise ValueError(f"{file} holds a {type(content).__name__}; expected a list of rows")
    for number, row in enumerate(content, 1):
        yield f"row {number}", row


def _parquet(file: Path) -> Iterator[tuple[str, Any]]:
    import pyarrow
    from pyarrow import parquet

    try:
        opened = parquet.ParquetFile(file)
        number = 0
        for batch in opened.iter_batches(batch_size=64):
            for row in batch.to_pylist():
                number += 1
                yield f"row {number}", row
    except pyarrow.ArrowException as error:
        raise ValueError(f"{file} is no parquet file that can be read ({error})") from error
