"""The index of one file of samples, as Parquet: where each row lies, what it costs before any stage's settings, or why it is no use."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mindspeed_vita.data.measure import Measured
from mindspeed_vita.data.media.video import VideoHeader
from mindspeed_vita.files.digest import feed
from mindspeed_vita.files.publish import whole_file

FORMAT = 1
"""Raised when files written before can no longer be read, or measure differently."""
_META = b"vita"
_CLOCK_NS = 2_000_000_000
"""A file written less than this before it was indexed may change again without its time changing."""
_GROUP = 1 << 16
"""Rows of a row group."""
_SMALL = 1000
"""Rows below which nothing is compressed: setting up the compression of each column would take longer than all else."""

SCHEMA = pa.schema(
    [
        ("offset", pa.int64()),
        ("size", pa.int32()),
        ("place", pa.int32()),
        ("digest", pa.binary(16)),
        ("reason", pa.string()),
        ("media_at_fault", pa.bool_()),
        ("turn_tokens", pa.list_(pa.int32())),
        ("turn_images", pa.list_(pa.int32())),
        ("turn_videos", pa.list_(pa.int32())),
        ("turn_answers", pa.list_(pa.bool_())),
        ("media_kind", pa.list_(pa.int8())),
        ("media_a", pa.list_(pa.int32())),
        ("media_b", pa.list_(pa.int32())),
        ("media_fps", pa.list_(pa.float64())),
    ]
)
"""offset, size, place: bytes and line (or item) of the row; reason: why it is skipped, null where it is not; media: pictures (kind 0, a
width, b height), then videos (kind 1 file or 2 folder, a frames, fps, b milliseconds where frames are not spaced evenly, else 0)."""


@dataclass(frozen=True)
class IndexHead:
    """What a Parquet file says about the file it was made from."""

    path: str
    """The file of samples."""
    size: int
    mtime_ns: int
    content: str
    """blake2b of its bytes."""
    built_ns: int
    rows_path: str
    """Where the rows can be read by offset: the file itself, or a plain copy of an archive or array."""
    is_array: bool
    num_rows: int
    num_skipped: int
    digest: str
    """sha256 of everything measured, wherever the files lie."""


def row_columns(place: tuple[int, int, int], digest: bytes, found: Measured | tuple[str, bool]) -> tuple[Any, ...]:
    """One row of the table.

    Args:
        place: offset, size, line or item.
        digest: of the row's text.
        found: what was measured, or why the row is skipped and whether a picture or video is at fault.
    """
    if isinstance(found, tuple):
        return (*place, digest, *found, [], [], [], [], [], [], [], [])
    kinds = [0] * len(found.sizes) + [1 + video.is_folder for video in found.videos]
    first = [width for width, _ in found.sizes] + [video.num_frames for video in found.videos]
    second = [height for _, height in found.sizes] + [video.milliseconds for video in found.videos]
    fps = [0.0] * len(found.sizes) + [video.fps for video in found.videos]
    turns = (found.turn_tokens, found.turn_images, found.turn_videos, found.turn_answers)
    return (*place, digest, None, False, *turns, kinds, first, second, fps)


def row_measured(columns: dict[str, Any]) -> Measured:
    """The measurement of one row, given as values by column name."""
    media = list(zip(columns["media_kind"], columns["media_a"], columns["media_b"], columns["media_fps"]))
    return Measured(
        turn_tokens=tuple(columns["turn_tokens"]),
        turn_images=tuple(columns["turn_images"]),
        turn_videos=tuple(columns["turn_videos"]),
        turn_answers=tuple(columns["turn_answers"]),
        sizes=tuple((a, b) for kind, a, b, _ in media if kind == 0),
        videos=tuple(VideoHeader(kind == 2, a, fps, b) for kind, a, b, fps in media if kind != 0),
    )


def make_batch(rows: Iterable[tuple[Any, ...]]) -> pa.RecordBatch:
    """A batch of row_columns."""
    columns = list(zip(*rows))
    return pa.record_batch([pa.array(column, type=field.type) for column, field in zip(columns, SCHEMA)], schema=SCHEMA)


def write_index(
    target: Path, batches: Iterable[pa.RecordBatch], stamp: Callable[[], SourceStamp], *, rows_path: str, is_array: bool
) -> IndexHead:
    """Writes the index of one file; it appears only when it is whole. The stamp is asked for after the last batch."""
    target.parent.mkdir(parents=True, exist_ok=True)
    digests: dict[str, Any] = {}
    num_rows, num_skipped = 0, 0
    with whole_file(target) as temporary, open(temporary, "wb") as file:
        groups = _grouped(batches)
        first = next(groups, None)
        codec = "zstd" if first is not None and len(first) >= _SMALL else "none"
        with pq.ParquetWriter(file, SCHEMA, compression=codec) as writer:
            for table in chain(() if first is None else (first,), groups):
                writer.write_table(table, row_group_size=len(table))
                num_rows += len(table)
                num_skipped += len(table) - table.column("reason").null_count
                for name in SCHEMA.names[3:]:
                    for column in table.column(name).chunks:
                        _feed(digests, name, column)
            source = stamp()
            head = IndexHead(
                path=source.path,
                size=source.size,
                mtime_ns=source.mtime_ns,
                content=source.content,
                built_ns=time.time_ns(),
                rows_path=rows_path,
                is_array=is_array,
                num_rows=num_rows,
                num_skipped=num_skipped,
                digest=hashlib.sha256("".join(digests[name].hexdigest() for name in sorted(digests)).encode()).hexdigest(),
            )
            writer.add_key_value_metadata({_META: json.dumps({"format": FORMAT, **asdict(head)}).encode()})
    return head


def _grouped(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.Table]:
    """Batches put together to row groups of _GROUP rows, however the rows came: what reads them works by the column, and small groups cost
    as much as large ones."""
    waiting: list[pa.RecordBatch] = []
    num_rows = 0
    for batch in batches:
        while num_rows + len(batch) >= _GROUP:
            head = batch.slice(0, _GROUP - num_rows)
            yield pa.Table.from_batches([*waiting, head]).combine_chunks()
            waiting, num_rows, batch = [], 0, batch.slice(len(head))
        if len(batch):
            waiting.append(batch)
            num_rows += len(batch)
    if waiting:
        yield pa.Table.from_batches(waiting).combine_chunks()


def _feed(digests: dict[str, Any], name: str, column: pa.Array) -> None:
    """Adds a column's values, however the rows are cut into batches; not its memory, which may hold anything in places that are null."""

    def update(part: str, data: bytes) -> None:
        digests.setdefault(part, hashlib.sha256()).update(data)

    if pa.types.is_list(column.type):
        update(f"{name} lengths", column.value_lengths().to_numpy(zero_copy_only=False).astype(np.int32).tobytes())
        column = column.flatten()
    if pa.types.is_string(column.type):
        update(name, column.is_null().to_numpy(zero_copy_only=False).tobytes())  # that a row is skipped, not why: reasons name places
    elif pa.types.is_fixed_size_binary(column.type):
        update(name, b"".join(column.to_pylist()))
    else:
        update(name, column.to_numpy(zero_copy_only=False).tobytes())


@dataclass(frozen=True)
class SourceStamp:
    """A file of samples at a moment."""

    path: str
    size: int
    mtime_ns: int
    content: str


def content_hash() -> Any:
    """What a file's bytes are hashed with."""
    return hashlib.blake2b(digest_size=20)


def file_content(path: str) -> str:
    """The hash of a file, read whole."""
    return str(feed(content_hash(), path).hexdigest())


def read_head(path: Path) -> IndexHead | None:
    """The head of an index, or None where there is none of this format."""
    try:
        content = pq.read_metadata(path).metadata
    except (OSError, pa.ArrowInvalid):
        return None
    head = json.loads((content or {}).get(_META, b"{}"))
    return IndexHead(**head) if head.pop("format", None) == FORMAT else None


def fresh_head(path: Path, source: str) -> IndexHead | None:
    """The head of an index that still describes a file of samples, or None. An unchanged file is not read."""
    head = read_head(path)
    if head is None or not os.path.exists(head.rows_path):
        return None
    found = os.stat(source)
    if (found.st_size, found.st_mtime_ns) == (head.size, head.mtime_ns) and head.mtime_ns + _CLOCK_NS < head.built_ns:
        return head
    return head if found.st_size == head.size and file_content(source) == head.content else None


def read_batches(path: Path, columns: list[str] | None = None) -> Iterator[pa.Table]:
    """The index, a row group at a time."""
    with pq.ParquetFile(path) as file:
        for group in range(file.num_row_groups):
            yield file.read_row_group(group, columns=columns)
