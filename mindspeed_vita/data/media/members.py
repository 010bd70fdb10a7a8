"""Media inside a tar shard or a Parquet file, named by references that stand where paths do: shard.tar!/512+9000/a.jpg."""

from __future__ import annotations

import io
import os
import re
import stat
from bisect import bisect_right
from functools import lru_cache
from typing import Any, BinaryIO

from mindspeed_vita.data.media.file_part import FilePart
from mindspeed_vita.data.media.paths import MediaError

_TAR = re.compile(r"(\d+)\+(\d+)/.*", re.DOTALL)
_ROWS = 16
"""Rows of a Parquet column that are decoded at a time."""
_BUFFER = 1 << 16
"""Bytes that are read from a Parquet file at a time; without it a whole column of a row group is."""
_PARQUET = re.compile(r"(\w+)/(\d+)/(\d+)")


def tar_reference(shard: str, offset: int, size: int, name: str) -> str:
    """Names a member of an uncompressed tar file by where its bytes lie."""
    return f"{shard}!/{offset}+{size}/{name}"


def parquet_reference(file: str, column: str, row: int, place: int) -> str:
    """Names one picture of a cell; rows and places count from 0."""
    return f"{file}!/{column}/{row}/{place}"


def read_member(container: str, member: str, max_bytes: int) -> BinaryIO:
    """The bytes that a reference names, as a file. Those in a tar file are read only as far as they are asked for.

    Args:
        container: path of the file.
        member: what follows the !/ of the reference.
        max_bytes: largest picture file.

    Raises:
        MediaError: the reference is malformed, or the container holds no such picture.
    """
    name = f"{container}!/{member}"
    try:
        _check_container(container, name)
        if _TAR.fullmatch(member) is not None:
            return io.BufferedReader(tar_part(container, member, max_bytes).open())
        found = _PARQUET.fullmatch(member)
        if found is None:
            raise MediaError(name, "is no reference into a tar or Parquet file; expected OFFSET+SIZE/NAME or COLUMN/ROW/PLACE")
        return io.BytesIO(_from_parquet(container, found[1], int(found[2]), int(found[3]), max_bytes, name))
    except OSError as error:
        raise MediaError(name, f"cannot be read ({error.strerror or error})") from error


def tar_part(container: str, member: str, max_bytes: int) -> FilePart:
    """The part of a tar shard that a reference names, as a file to be opened. Nothing is read here, and later only what is asked for.

    Args:
        container: path of the shard.
        member: what follows the !/ of the reference.
        max_bytes: largest picture or film.

    Raises:
        MediaError: no reference into a tar shard, or the shard ends before the member does.
    """
    name = f"{container}!/{member}"
    found = _TAR.fullmatch(member)
    if found is None:
        raise MediaError(name, "is no reference into a tar shard; expected OFFSET+SIZE/NAME")
    offset, size = int(found[1]), int(found[2])
    _check_size(size, max_bytes, name)
    try:
        whole = _check_container(container, name)
    except OSError as error:
        raise MediaError(name, f"cannot be read ({error.strerror or error})") from error
    if whole < offset + size:
        raise MediaError(name, f"ends after {max(0, whole - offset):,} of {size:,} bytes; the shard changed since it was indexed")
    return FilePart(container, offset, size, member.rpartition("/")[2])


def _from_parquet(path: str, column: str, row: int, place: int, max_bytes: int, name: str) -> bytes:
    import pyarrow as pa

    stamp = os.stat(path)
    try:
        group, first = _group_of(_bounds(path, stamp.st_mtime_ns, stamp.st_size), row)
        cell = _cursor(path, stamp.st_mtime_ns, stamp.st_size, column, group).cell(row - first)
        cell = cell[place] if isinstance(cell, list) else cell
        content = cell.get("bytes") if isinstance(cell, dict) else cell
    except (pa.ArrowException, KeyError, IndexError) as error:
        raise MediaError(name, f"the file holds no such picture ({error}); it changed since it was indexed") from error
    if not isinstance(content, bytes):
        raise MediaError(name, f"found {type(content).__name__}, expected bytes")
    _check_size(len(content), max_bytes, name)
    return content


@lru_cache(maxsize=64)
def _bounds(path: str, modified: int, size: int) -> tuple[int, ...]:
    """First row of each row group, and the number of rows; a file that changed has another stamp."""
    import pyarrow.parquet as pq

    metadata = pq.read_metadata(path)
    bounds = [0]
    for group in range(metadata.num_row_groups):
        bounds.append(bounds[-1] + metadata.row_group(group).num_rows)
    return tuple(bounds)


def _group_of(bounds: tuple[int, ...], row: int) -> tuple[int, int]:
    """(row group that holds a row, its first row)."""
    group = bisect_right(bounds, row) - 1
    if not 0 <= group < len(bounds) - 1:
        raise IndexError(f"row {row} of {bounds[-1]}")
    return group, bounds[group]


class _Cursor:
    """Goes through a column of one row group, a few rows at a time. What is asked for in order is decoded once, and nothing behind it."""

    def __init__(self, path: str, column: str, group: int) -> None:
        self._path, self._column, self._group = path, column, group
        self._first = 0
        self._cells: Any = ()
        self._rewind()

    def cell(self, row: int) -> Any:
        """The cell of a row, counted from the first of the group.

        Raises:
            IndexError: the group ends before it.
        """
        if row < self._first:
            self._rewind()
        while row >= self._first + len(self._cells):
            self._first += len(self._cells)
            batch = next(self._batches, None)
            if batch is None:
                raise IndexError(f"row {row} of {self._first} in row group {self._group}")
            self._cells = batch.column(self._column)
        return self._cells[row - self._first].as_py()

    def _rewind(self) -> None:
        import pyarrow.parquet as pq

        file = pq.ParquetFile(self._path, buffer_size=_BUFFER, pre_buffer=False)
        self._batches = file.iter_batches(batch_size=_ROWS, row_groups=[self._group], columns=[self._column], use_threads=False)
        self._first, self._cells = 0, ()


@lru_cache(maxsize=4)
def _cursor(path: str, modified: int, size: int, column: str, group: int) -> _Cursor:
    """A cursor that is kept: while a file is indexed, neighbours are asked for one after the other."""
    return _Cursor(path, column, group)


def _check_container(path: str, name: str) -> int:
    """Bytes of a container; a pipe in its place would stop the reader for ever."""
    found = os.stat(path)
    if not stat.S_ISREG(found.st_mode):
        raise MediaError(name, "lies in what is no regular file")
    return found.st_size


def _check_size(size: int, max_bytes: int, name: str) -> None:
    if size > max_bytes:
        raise MediaError(name, f"has {size:,} bytes, data.max_media_bytes allows {max_bytes:,}")
