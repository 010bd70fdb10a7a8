"""A part of a file as a file of its own, for films inside tar shards: it is read and sought in place, never copied."""

from __future__ import annotations

import io
import os
from dataclasses import dataclass


@dataclass(frozen=True)
class FilePart:
    """Some bytes of a file."""

    path: str
    offset: int
    size: int
    """Bytes."""
    name: str
    """What the part is called; its suffix helps FFmpeg to tell the container."""

    def open(self) -> FilePartReader:
        """A new reader at the part's first byte."""
        return FilePartReader(self)


class FilePartReader(io.RawIOBase):
    """Reads a FilePart. Positions count from the part's first byte."""

    def __init__(self, part: FilePart) -> None:
        self.name = part.name
        self._part = part
        self._place = 0
        self._file = os.open(part.path, os.O_RDONLY)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._place

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._place = max(0, offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._place, os.SEEK_END: self._part.size}[whence])
        return self._place

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        wanted = max(0, min(len(buffer), self._part.size - self._place))
        content = os.pread(self._file, wanted, self._part.offset + self._place)
        buffer[: len(content)] = content
        self._place += len(content)
        return len(content)

    def close(self) -> None:
        if not self.closed:
            os.close(self._file)
        super().close()
