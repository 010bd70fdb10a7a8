"""How far a batch of requests has come: a bar on a terminal, now and then a line elsewhere."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Any, Optional

_EVERY = 15.0
"""Seconds between plain lines."""


class BatchProgress:
    """Progress on standard error, from entry to exit.

    Args:
        name: shown in front.
        total: lines to be answered in all.
        done: lines that have a record already.
    """

    def __init__(self, name: str, total: int, done: int) -> None:
        self.name, self.total, self.count = name, total, done
        self._bar: Optional[Any] = None
        self._said = time.monotonic()

    def __enter__(self) -> BatchProgress:
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
            self._bar = Progress(*columns, console=Console(stderr=True))
            self._bar.start()
            self._task = self._bar.add_task(self.name, total=self.total, completed=self.count)
        return self

    def __exit__(self, kind: Optional[type], error: Optional[BaseException], trace: Optional[TracebackType]) -> None:
        if self._bar is not None:
            self._bar.stop()

    def done(self, count: int) -> None:
        """So many lines have a record now."""
        if count == self.count:
            return
        self.count = count
        if self._bar is not None:
            self._bar.update(self._task, completed=count)
        elif time.monotonic() - self._said > _EVERY:
            self.line(f"{self.name}: {count} of {self.total} lines")

    def line(self, text: str) -> None:
        """Prints a line without breaking the bar."""
        self._said = time.monotonic()
        if self._bar is not None:
            self._bar.console.print(text, markup=False, highlight=False)
        else:
            print(text, file=sys.stderr, flush=True)
