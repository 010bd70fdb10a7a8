"""One file whose parts are read and measured by several processes at a time: the row groups of a Parquet file.

Each process writes the rows of its part to a file of its own. They are put together in the order of the parts, so rows and index are those
that one process makes.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pyarrow as pa

from mindspeed_vita.data.crew import Crew
from mindspeed_vita.data.formats import PartReader
from mindspeed_vita.data.measure import Measurer
from mindspeed_vita.data.row_batches import chunks, measure_chunk
from mindspeed_vita.data.rows import Row, as_json
from mindspeed_vita.files.publish import whole_file

_PART_BYTES = 64 << 20
"""Bytes that a process is given at a time, at most, where row groups allow it."""
_AHEAD = 4


@dataclass(frozen=True)
class Part:
    """Some consecutive parts of a file."""

    reader: PartReader
    source: str
    root: str
    """Folder that its media lie below."""
    numbers: range
    text: str
    """File that its rows are written to, one a line."""


def measured_parts(
    crew: Crew, reader: PartReader, source: str, root: str, copy: Path, report: Callable[[int, int], None]
) -> Iterator[pa.RecordBatch]:
    """The columns of the index for a file's rows, in their order. The copy of the rows is there when the last batch was taken.

    Args:
        crew: who reads and measures.
        reader: of the file's format.
        source: the file.
        root: folder that its media lie below.
        copy: where its rows go, one a line.
        report: called with bytes done and bytes in all.

    Raises:
        ValueError: the file cannot be read, or a row is no sample; names file and item.
    """
    sizes = reader.sizes(source)
    copy.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(copy) as temporary, tempfile.TemporaryDirectory(prefix=f"{copy.name}.", suffix=".tmp", dir=copy.parent) as folder:
        runs = _runs(sizes, max(1, min(_PART_BYTES, sum(sizes) // (4 * crew.processes))))
        parts = [Part(reader, source, root, numbers, os.path.join(folder, str(numbers.start))) for numbers in runs]
        with open(temporary, "wb") as rows:
            done = 0
            for part, batches in zip(parts, crew.together(_measure_part, parts, lambda _: source, ahead=_AHEAD)):
                start = rows.tell()
                with open(part.text, "rb") as text:
                    shutil.copyfileobj(text, rows, 1 << 20)
                os.unlink(part.text)
                yield from (_moved(batch, start) for batch in batches)
                done += sum(sizes[part.numbers.start : part.numbers.stop])
                report(done, sum(sizes))


def _runs(sizes: list[int], least: int) -> list[range]:
    """Numbers of consecutive parts that have so many bytes together, or more."""
    runs, first, held = [], 0, 0
    for number, size in enumerate(sizes):
        held += size
        if held >= least or number == len(sizes) - 1:
            runs.append(range(first, number + 1))
            first, held = number + 1, 0
    return runs


def _measure_part(measurer: Measurer, part: Part) -> list[pa.RecordBatch]:
    """Reads and measures a part; offsets count from its own first row."""
    with open(part.text, "wb") as file:
        return [measure_chunk(measurer, chunk) for chunk in chunks(_written(part, file), part.source, part.root, True)]


def _written(part: Part, file: BinaryIO) -> Iterator[Row]:
    offset = 0
    for place, row in part.reader.rows(part.source, part.numbers):
        line = as_json(row, part.source, place)
        file.write(line)
        yield Row(offset, place, line.rstrip(b"\n"))
        offset += len(line)


def _moved(batch: pa.RecordBatch, start: int) -> pa.RecordBatch:
    """The batch with its offsets counted from a byte."""
    offsets = pa.array(batch.column("offset").to_numpy() + np.int64(start), pa.int64())
    return batch.set_column(batch.schema.get_field_index("offset"), batch.schema.field("offset"), offsets)
