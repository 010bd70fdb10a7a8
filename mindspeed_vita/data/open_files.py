"""Files that are read by offset, a bounded number of them open at a time: a mixture may have more files than a process may open."""

from __future__ import annotations

import os
from functools import lru_cache
from typing import Any

_MOST_OPEN = 128
"""The usual limit of a process is 1,024 open files, and a run has other uses for them."""


class OpenFiles:
    """Reads from files by path. It may be used by several threads, and by processes forked from this one: no shared position moves."""

    def __init__(self, most_open: int = _MOST_OPEN) -> None:
        self._most_open = most_open
        # A file that another thread still reads from is closed when that read ends: the reader holds a reference.
        self._open = lru_cache(maxsize=most_open)(_OpenFile)

    def read(self, path: str, offset: int, size: int) -> bytes:
        """Up to size bytes from an offset; fewer where the file ends.

        Raises:
            OSError: the file cannot be opened or read.
        """
        return self._open(path).read(offset, size)

    def __reduce__(self) -> tuple[Any, ...]:
        return OpenFiles, (self._most_open,)


class _OpenFile:
    """One open file. It is closed with the last reference to it."""

    def __init__(self, path: str) -> None:
        self._file = open(path, "rb", buffering=0)  # noqa: SIM115 - open for as long as this object lives

    def read(self, offset: int, size: int) -> bytes:
        return os.pread(self._file.fileno(), size, offset)

    def __del__(self) -> None:
        if hasattr(self, "_file"):
            self._file.close()
