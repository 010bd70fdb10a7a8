"""How far a conversion is: a bar with MB/s and the time left on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_EVERY = 15.0
"""Seconds between two lines."""


@contextmanager
def bytes_bar(what: str) -> Iterator[Callable[[int], Callable[[int], None]]]:
    """Gives a function that is told the bytes in all, and returns one that is told of each part.

    Args:
        what: shown in front.
    """
    if not sys.stderr.isatty():
        yield lambda total: _Lines(what, total)
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:

        def start(total: int) -> Callable[[int], None]:
            task = progress.add_task(what, total=total)
            return lambda size: progress.advance(task, size)

        yield start


class _Lines:
    def __init__(self, what: str, total: int) -> None:
        self._what, self._total, self._done = what, max(total, 1), 0
        self._began = self._said = time.monotonic()

    def __call__(self, size: int) -> None:
        self._done += size
        now = time.monotonic()
        if now - self._said < _EVERY:
            return
        self._said = now
        speed = self._done / max(now - self._began, 1e-9)
        left = (self._total - self._done) / max(speed, 1.0)
        share = f"{self._done / 1e9:,.1f} of {self._total / 1e9:,.1f} GB"
        print(f"{self._what}: {share}, {speed / 1e6:,.0f} MB/s, {left:,.0f} s left", file=sys.stderr, flush=True)
