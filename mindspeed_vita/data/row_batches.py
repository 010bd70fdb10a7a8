"""Rows of one file in chunks, and the columns of the index for each chunk."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import pyarrow as pa

from mindspeed_vita.data.index_file import make_batch, row_columns
from mindspeed_vita.data.measure import Measured, Measurer
from mindspeed_vita.data.media.paths import MediaError
from mindspeed_vita.data.rows import Row, parse_row, row_digest

_CHUNK = 2000
"""Most rows measured at a time."""
_CHUNK_BYTES = 4 << 20
"""Text at which a chunk ends although it has fewer rows: what waits in memory goes by bytes, and rows may be long."""


@dataclass(frozen=True)
class Chunk:
    """Some rows of a file."""

    rows: list[Row]
    source: str
    """The file, for messages."""
    root: str
    """Folder that its media lie below."""
    is_array: bool
    """Whether places are items, not lines."""


def chunks(rows: Iterable[Row], source: str, root: str, is_array: bool) -> Iterator[Chunk]:
    """The rows in chunks that are measured at a time. Arguments are those of Chunk."""
    waiting: list[Row] = []
    size = 0
    for row in rows:
        waiting.append(row)
        size += len(row.text)
        if len(waiting) >= _CHUNK or size >= _CHUNK_BYTES:
            yield Chunk(waiting, source, root, is_array)
            waiting, size = [], 0
    if waiting:
        yield Chunk(waiting, source, root, is_array)


def measure_chunk(measurer: Measurer, chunk: Chunk) -> pa.RecordBatch:
    """The columns of the index of a chunk, a row of them for each row.

    Raises:
        ValueError: a row is no sample; names file and line.
    """
    samples = [parse_row(row.text, chunk.source, row.place, chunk.is_array) for row in chunk.rows]
    found = []
    for row, measured in zip(chunk.rows, measurer.measure_all(samples, chunk.root)):
        if isinstance(measured, MediaError):
            reason = f"{measured.path}: {measured.reason}" if measured.path else measured.reason
            # a path may hold half a surrogate pair, which neither Parquet nor a terminal takes
            outcome: Measured | tuple[str, bool] = (reason.encode("utf-8", "backslashreplace").decode(), bool(measured.path))
        else:
            outcome = measured
        found.append(row_columns((row.offset, len(row.text), row.place), row_digest(row.text), outcome))
    return make_batch(found)
