"""Parquet files as hub data sets have them: turns in one column, pictures as bytes in another, read from there by row."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from mindspeed_vita.data.formats.messages import TURN_FIELDS, turns_of, with_tags
from mindspeed_vita.data.media.members import parquet_reference

PICTURE_COLUMNS = ("images", "image")


def parquet_rows(path: str) -> Iterator[dict[str, Any]]:
    """Rows of a file: turns under messages, conversations or texts; pictures under image or images, as {bytes, path} or plain bytes.

    A picture without bytes is taken from its path, relative to the file's folder. Pictures are not read here: a row refers to them.

    Raises:
        ValueError: no Parquet file, no column of turns, or a cell of another kind; names file, row and column.
    """
    try:
        with pq.ParquetFile(path) as file:
            names = file.schema_arrow.names
            if not any(name in names for name in TURN_FIELDS):
                raise ValueError(f"{path}: found columns {', '.join(names)}; expected turns under {' or '.join(TURN_FIELDS)}")
            pictures = next((name for name in PICTURE_COLUMNS if name in names), None)
            wanted = [name for name in (*TURN_FIELDS, "videos", pictures) if name in names]
            number = 0
            for batch in file.iter_batches(batch_size=64, columns=wanted):
                for row in batch.to_pylist():
                    number += 1
                    yield _sample(path, row, pictures, number)
    except pa.ArrowException as error:
        raise ValueError(f"{path}: cannot be read as Parquet ({error}); copy it again") from error
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror or error}); check data_paths in the mixture") from error


def _sample(path: str, row: dict[str, Any], column: str | None, number: int) -> dict[str, Any]:
    where = f"{path}: item {number}"
    cells = row.get(column) if column else None
    listed = cells if isinstance(cells, list) else [] if cells is None else [cells]
    images = [_picture(path, cell, column or "", number, place, f"{where}: {column}[{place}]") for place, cell in enumerate(listed)]
    return {"messages": with_tags(turns_of(row, where), len(images)), "images": images, "videos": row.get("videos")}


def _picture(path: str, cell: Any, column: str, number: int, place: int, where: str) -> str:
    content = cell.get("bytes") if isinstance(cell, Mapping) else cell
    if isinstance(content, bytes):
        return parquet_reference(os.path.basename(path), column, number - 1, place)
    named = cell.get("path") if isinstance(cell, Mapping) else cell
    if isinstance(named, str) and named:
        return named
    raise ValueError(f"{where}: found {type(cell).__name__} without bytes or path; expected a picture as bytes, or {{bytes, path}}")
