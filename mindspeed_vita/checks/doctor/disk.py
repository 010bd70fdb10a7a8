"""How fast a data folder is read: a few of its files, past the page cache."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

_FILES = 2000
_BYTES = 512 << 20
_SECONDS = 5.0
_BLOCK = 1 << 20


@dataclass(frozen=True, kw_only=True)
class DiskSpeed:
    """What reading gave."""

    files: int
    bytes: int
    seconds: float
    cached: bool
    """The page cache could not be passed by, so the figure may be that of memory."""

    @property
    def mb_per_second(self) -> float:
        """10**6 bytes a second."""
        return self.bytes / 1e6 / max(self.seconds, 1e-6)


def read_speed(folder: str | Path) -> DiskSpeed:
    """Reads the first files below a folder, for five seconds or 512 MiB at most.

    Raises:
        ValueError: no folder, or no file that can be read in it.
    """
    root = Path(folder)
    if not root.is_dir():
        raise ValueError(f"{root} is no folder")
    files = total = 0
    cached = False
    start = time.perf_counter()
    for path in islice(_walk(root), _FILES):
        try:
            size, past = _read(path, _BYTES - total)
        except OSError:
            continue  # vanished or not ours to read; that is not what is measured
        files, total, cached = files + 1, total + size, cached or not past
        if total >= _BYTES or time.perf_counter() - start > _SECONDS:
            break
    if not total:
        raise ValueError(f"{root} holds no file with something in it")
    return DiskSpeed(files=files, bytes=total, seconds=time.perf_counter() - start, cached=cached)


def _walk(root: Path) -> Iterator[str]:
    for folder, _, names in os.walk(root):
        for name in sorted(names):
            yield os.path.join(folder, name)


def _read(path: str, most: int) -> tuple[int, bool]:
    """(bytes read, whether the page cache was dropped first)."""
    total = 0
    with open(path, "rb", buffering=0) as file:
        past = hasattr(os, "posix_fadvise")
        if past:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        while total < most:
            block = file.read(_BLOCK)
            if not block:
                break
            total += len(block)
    return total, past
