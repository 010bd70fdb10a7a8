"""The files in a tar shard, by offset. A shard is whole, or it is refused: Python's tarfile takes a damaged header for the end."""

from __future__ import annotations

import tarfile
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from typing import BinaryIO

from mindspeed_vita.hf.frames import is_clutter

_BLOCK = tarfile.BLOCKSIZE
_END = 2 * _BLOCK
"""Zero bytes that end an archive, at least."""
_CHUNK = 1 << 20


@dataclass(frozen=True)
class Member:
    """A file in a shard."""

    name: str
    offset: int
    """Of its first byte, from the start of the shard."""
    size: int
    """Bytes."""
    archive: int
    """Which of the archives that were written one after the other into the shard, from 0."""

    @property
    def suffix(self) -> str:
        """What follows the last dot, in lower case."""
        return self.name.rpartition(".")[2].lower()


def tar_members(path: str) -> Iterator[Member]:
    """The files of a shard in their order. Folders, and what file managers and notebooks leave behind, are left out.

    A hard link stands for the file that it names. Archives that were concatenated are read one after the other.

    Args:
        path: an uncompressed tar file.

    Raises:
        ValueError: a header is damaged, the file is cut off, or a member is no plain file; names the shard and the byte or member.
        OSError: the file cannot be read.
    """
    with open(path, "rb") as file:
        start: int | None = 0
        archive = 0
        while start is not None:
            end = yield from _archive(path, file, start, archive)
            start = _next_archive(path, file, end)
            archive += 1


def _archive(path: str, file: BinaryIO, start: int, number: int) -> Generator[Member, None, int]:
    """Yields the files of the archive that begins at a byte; returns the byte after its last member."""
    end = start
    files: dict[str, Member] = {}
    try:
        file.seek(start)
        with tarfile.open(fileobj=file, mode="r:") as shard:
            for info in shard:
                if info.size < 0 or info.offset < end:
                    raise ValueError(f"the header of {info.name!r} gives a size of {info.size:,} bytes")
                end = info.offset_data + (-(-info.size // _BLOCK) * _BLOCK if info.isreg() else 0)
                if info.isdir() or is_clutter(info.name):
                    continue
                found = _member(info, files, number)
                files[info.name] = found
                yield found
    except (tarfile.TarError, EOFError, ValueError, OverflowError) as error:
        raise _damaged(path, error) from error
    return end


def _member(info: tarfile.TarInfo, files: dict[str, Member], archive: int) -> Member:
    if info.islnk() and info.linkname in files:
        target = files[info.linkname]
        return Member(info.name, target.offset, target.size, archive)
    if not info.isreg() or info.issparse():
        raise ValueError(f"{info.name!r} is no plain file (a link, a device or a file with holes); write the shard with `tar -h`")
    return Member(info.name, info.offset_data, info.size, archive)


def _next_archive(path: str, file: BinaryIO, end: int) -> int | None:
    """Byte at which a further archive begins; None where the file holds nothing more.

    Raises:
        ValueError: the archive before has no end.
    """
    file.seek(end)
    head = file.read(_END)
    if head.strip(b"\0"):
        raise _damaged(path, f"found no whole header at byte {end + (0 if head[:_BLOCK].strip(bytes(1)) else _BLOCK):,}")
    if len(head) < _END:
        raise _damaged(path, f"cut off at byte {end + len(head):,}, before the zero blocks that end an archive")
    place = end + _END
    while chunk := file.read(_CHUNK):
        rest = chunk.lstrip(b"\0")
        if rest:
            return place + (len(chunk) - len(rest)) // _BLOCK * _BLOCK
        place += len(chunk)
    return None


def _damaged(path: str, why: object) -> ValueError:
    return ValueError(
        f"{path}: is no whole, uncompressed tar file ({why}); its pictures are read by offset: copy it again, unpack it, or write it anew"
    )
