"""Parquet files as hub data sets have them: turns in one column, pictures as bytes in another, read from there by row."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from mindspeed_vita.data.media.members import parquet_reference
from mindspeed_vita.data.schema import LAYOUT_FIELDS, USED_FIELDS, plain_row

PICTURE_COLUMNS = ("images", "image")


def parquet_rows(path: str) -> Iterator[dict[str, Any]]:
    """Rows of a file: columns with the keys of schema/; pictures under image or images, as {bytes, path} or plain bytes.

    A picture without bytes is taken from its path, relative to the file's folder. Pictures are not read here: a row refers to them.

    Raises:
        ValueError: no Parquet file, no column of turns, or a cell of another kind; names file, row and column.
    """
    with _opened(path) as file:
        yield from (row for _, row in _numbered_rows(path, file, range(file.num_row_groups)))


def group_sizes(path: str) -> list[int]:
    """Bytes of each row group.

    Raises:
        ValueError: no Parquet file.
    """
    with _opened(path) as file:
        return [file.metadata.row_group(group).total_byte_size for group in range(file.num_row_groups)]


def group_rows(path: str, groups: range) -> Iterator[tuple[int, dict[str, Any]]]:
    """Rows of some row groups, each with its number in the file, from 1. Else as parquet_rows."""
    with _opened(path) as file:
        yield from _numbered_rows(path, file, groups)


@contextmanager
def _opened(path: str) -> Iterator[pq.ParquetFile]:
    try:
        with pq.ParquetFile(path) as file:
            yield file
    except (pa.ArrowException, UnicodeDecodeError) as error:  # the latter: a damaged name of a column
        raise ValueError(f"{path}: cannot be read as Parquet ({error}); copy it again") from error
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror or error}); check data_paths in the mixture") from error


def _numbered_rows(path: str, file: pq.ParquetFile, groups: range) -> Iterator[tuple[int, dict[str, Any]]]:
    names = file.schema_arrow.names
    if not any(name in names for name in LAYOUT_FIELDS):
        raise ValueError(f"{path}: found columns {', '.join(names)}; expected turns under one of {', '.join(LAYOUT_FIELDS)}")
    pictures = next((name for name in PICTURE_COLUMNS if name in names), None)
    wanted = [field.name for field in file.schema_arrow if field.name in USED_FIELDS or not _holds_bytes(field.type)]
    unread = [name for name in names if name not in wanted]
    number = sum(file.metadata.row_group(group).num_rows for group in range(groups.start))
    for batch in file.iter_batches(batch_size=64, row_groups=list(groups), columns=wanted):
        for row in _rows(batch, path, number):
            number += 1
            yield number, _sample(path, {**row, "unknown_keys": unread}, pictures, number)


def _rows(batch: pa.RecordBatch, path: str, before: int) -> list[dict[str, Any]]:
    """The rows of a batch, before which so many were read."""
    try:
        return batch.to_pylist()
    except UnicodeDecodeError:  # Parquet's readers do not look at what is called text
        for place in range(len(batch)):
            try:
                batch.slice(place, 1).to_pylist()
            except UnicodeDecodeError as error:
                found = f"bytes that are not UTF-8 ({error.reason} at byte {error.start} of a text)"
                raise ValueError(f"{path}: item {before + place + 1}: found {found}; write the file again") from error
        raise


def _sample(path: str, row: dict[str, Any], column: str | None, number: int) -> dict[str, Any]:
    where = f"{path}: item {number}"
    cells = row.get(column) if column else None
    listed = cells if isinstance(cells, list) else [] if cells is None else [cells]
    images = [_picture(path, cell, column or "", number, place, f"{where}: {column}[{place}]") for place, cell in enumerate(listed)]
    return plain_row({**row, **dict.fromkeys(PICTURE_COLUMNS), "images": images}, where)


def _holds_bytes(kind: pa.DataType) -> bool:
    inner = [kind.field(place).type for place in range(kind.num_fields)]
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind)) or any(map(_holds_bytes, inner))


def _picture(path: str, cell: Any, column: str, number: int, place: int, where: str) -> str:
    content = cell.get("bytes") if isinstance(cell, Mapping) else cell
    if isinstance(content, bytes):
        return parquet_reference(os.path.basename(path), column, number - 1, place)
    named = cell.get("path") if isinstance(cell, Mapping) else cell
    if isinstance(named, str) and named:
        return named
    raise ValueError(f"{where}: found {type(cell).__name__} without bytes or path; expected a picture as bytes, or {{bytes, path}}")
