"""Memory that a process shares with its decoder: tiles go through it, and not through a pipe, which copies them twice in the kernel."""

from __future__ import annotations

import mmap
import os
from collections import deque

import numpy as np

from mindspeed_vita.files.writing import naming

SIZE = 32 << 20
"""Bytes: some pictures of 13 tiles, so that the decoder works on the next ones while one is fetched."""


class Arena:
    """Places for the tiles of jobs, given out and freed in the order of the jobs."""

    def __init__(self, descriptor: int) -> None:
        """Maps a file of SIZE bytes; its descriptor may be closed afterwards."""
        self._memory = np.frombuffer(mmap.mmap(descriptor, SIZE), np.uint8)
        self._held: deque[tuple[int, int]] = deque()

    def take(self, size: int) -> int | None:
        """First byte of a place of so many bytes, or None where jobs before hold too much of it. With none before, all up to SIZE fits."""
        start = self._held[-1][1] if self._held else 0
        first = self._held[0][0] if self._held else SIZE
        wrapped = bool(self._held) and start <= first
        if not wrapped and start + size > SIZE:
            start, wrapped = 0, True
        if (wrapped or not self._held) and start + size > first:
            return None
        self._held.append((start, start + size))
        return start

    def free(self) -> None:
        """Frees the place that was taken first."""
        self._held.popleft()

    def fetch(self, start: int, into: np.ndarray) -> None:
        """Fills an array, uint8 and contiguous, with the bytes from a place on."""
        into.reshape(-1)[:] = self._memory[start : start + into.nbytes]


def memory_to_share() -> int | None:
    """The descriptor of SIZE bytes of memory; None where the system has no such file.

    Raises:
        OSError: there can be no file of so many bytes; says what it is for.
    """
    if not hasattr(os, "memfd_create"):
        return None
    descriptor = os.memfd_create("vita_tiles")
    try:
        with naming(f"the memory that is shared with the decoder of pictures ({SIZE >> 20} MiB)"):
            os.ftruncate(descriptor, SIZE)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor
