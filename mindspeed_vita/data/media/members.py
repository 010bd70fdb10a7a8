"""Media inside a tar shard or a Parquet file, named by references that stand where paths do: shard.tar!/512+9000/a.jpg."""

from __future__ import annotations

import io
import os
import re
import stat
from bisect import bisect_right
from functools import lru_cache
from typing import Any

from mindspeed_vita.data.media.file_part import FilePart
from mindspeed_vita.data.media.paths import MediaError

_TAR = re.compile(r"(\d+)\+(\d+)/.*", re.DOTALL)
_PARQUET = re.compile(r"(\w+)/(\d+)/(\d+)")


def tar_reference(shard: str, offset: int, size: int, name: str) -> str:
    """Names a member of an uncompressed tar file by where its bytes lie."""
    return f"{shard}!/{offset}+{size}/{name}"


def parquet_reference(file: str, column: str, row: int, place: int) -> str:
    """Names one picture of a cell; rows and places count from 0."""
    return f"{file}!/{column}/{row}/{place}"


def read_member(container: str, member: str, max_bytes: int) -> io.BytesIO:
    """The bytes that a reference names.

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
        part = _TAR.fullmatch(member)
        if part is not None:
            return io.BytesIO(_from_tar(container, int(part[1]), int(part[2]), max_bytes, name))
        found = _PARQUET.fullmatch(member)
        if found is None:
            raise MediaError(name, "is no reference into a tar or Parquet file; expected OFFSET+SIZE/NAME or COLUMN/ROW/PLACE")
        return io.BytesIO(_from_parquet(container, found[1], int(found[2]), int(found[3]), max_bytes, name))
    except OSError as error:
        raise MediaError(name, f"cannot be read ({error.strerror or error})") from error


def tar_part(container: str, member: str, max_bytes: int) -> FilePart:
    """The part of a tar shard that a reference names, as a file to be opened; for films, which are not read whole.

    Args:
        container: path of the shard.
        member: what follows the !/ of the reference.
        max_bytes: largest film.

    Raises:
        MediaError: no reference into a tar shard, or the shard ends before the film does.
    """
    name = f"{container}!/{member}"
    found = _TAR.fullmatch(member)
    if found is None:
        raise MediaError(name, "is no reference to a video in a tar shard; expected OFFSET+SIZE/NAME")
    offset, size = int(found[1]), int(found[2])
    _check_size(size, max_bytes, name)
    try:
        whole = _check_container(container, name)
    except OSError as error:
        raise MediaError(name, f"cannot be read ({error.strerror or error})") from error
    if whole < offset + size:
        raise MediaError(name, f"ends after {max(0, whole - offset):,} of {size:,} bytes; the shard changed since it was indexed")
    return FilePart(container, offset, size, member.rpartition("/")[2])


def _from_tar(path: str, offset: int, size: int, max_bytes: int, name: str) -> bytes:
    _check_size(size, max_bytes, name)
    with open(path, "rb") as file:
        file.seek(offset)
        content = file.read(size)
    if len(content) != size:
        raise MediaError(name, f"ends after {len(content):,} of {size:,} bytes; the shard changed since it was indexed")
    return content


def _from_parquet(path: str, column: str, row: int, place: int, max_bytes: int, name: str) -> bytes:
    import pyarrow as pa

    stamp = os.stat(path)
    try:
        group, first = _group_of(_bounds(path, stamp.st_mtime_ns, stamp.st_size), row)
        cells = _cells(path, stamp.st_mtime_ns, stamp.st_size, column, group)
        cell = cells[row - first].as_py()
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


@lru_cache(maxsize=2)
def _cells(path: str, modified: int, size: int, column: str, group: int) -> Any:
    """A column of a row group. Kept, for neighbours are asked for one after the other while a file is indexed."""
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as file:
        return file.read_row_group(group, columns=[column]).column(column)


def _check_container(path: str, name: str) -> int:
    """Bytes of a container; a pipe in its place would stop the reader for ever."""
    found = os.stat(path)
    if not stat.S_ISREG(found.st_mode):
        raise MediaError(name, "lies in what is no regular file")
    return found.st_size


def _check_size(size: int, max_bytes: int, name: str) -> None:
    if size > max_bytes:
        raise MediaError(name, f"has {size:,} bytes, data.max_media_bytes allows {max_bytes:,}")
