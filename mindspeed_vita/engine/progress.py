"""What a run shows while it goes: a progress bar on a terminal, plain lines elsewhere. Rank 0 only."""

from __future__ import annotations

import sys
import time
from typing import Any, Mapping, Optional

_LONGEST = 15.0
"""Seconds without a plain line, where steps are that quick."""

_SHOWN = 3
"""Most averages of a report that a line shows."""


class Progress:
    """Progress of a run on standard error.

    Args:
        name: shown in front.
        steps: steps of the whole run.
        done: steps already done.
        bar: draw a bar if standard error is a terminal.
        every: steps between plain lines; a line also comes when the last one is _LONGEST seconds old.
    """

    def __init__(self, name: str, *, steps: int, done: int, bar: bool, every: int) -> None:
        self.name, self.steps, self.every = name, steps, max(1, every)
        self._bar: Optional[Any] = None
        self._said = time.monotonic()
        if bar and sys.stderr.isatty():
            self._bar = _rich_bar()
            self._bar.start()
            self._task = self._bar.add_task(name, total=steps, completed=done, loss="-", speed="-")

    def update(self, entry: Mapping[str, Any], report: Optional[Mapping[str, float]] = None) -> None:
        """Show one step's metrics, and in brackets the averages of the objective's report."""
        step, speed = entry["step"], f"{entry['tokens_per_second']:,.0f} tok/s"
        loss = f"{entry['loss']:.4f}{_brief(report or {})}"
        if self._bar is not None:
            self._bar.update(self._task, completed=step, loss=loss, speed=speed)
        elif step % self.every == 0 or step in (1, self.steps) or time.monotonic() - self._said > _LONGEST:
            left = (self.steps - step) * entry["seconds"]
            self.line(f"{self.name} step {step}/{self.steps} loss {loss} lr {entry['lr']:.2e} {speed} {_clock(left)} left")

    def line(self, text: str) -> None:
        """Print a line without breaking the bar."""
        self._said = time.monotonic()
        if self._bar is not None:
            self._bar.console.print(text, markup=False, highlight=False)
        else:
            print(text, file=sys.stderr, flush=True)

    def close(self) -> None:
        """Leave the terminal as it was."""
        if self._bar is not None:
            self._bar.stop()


def _rich_bar() -> Any:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("loss {task.fields[loss]}", markup=False),  # names of sources may hold square brackets
        TextColumn("{task.fields[speed]}"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
    )


def _brief(report: Mapping[str, float]) -> str:
    """The largest few averages, in brackets: a mixture may have dozens of sources."""
    shown = sorted(report, key=lambda name: -report[name])
    parts = [f"{name.removeprefix('loss/')} {report[name]:.3f}" for name in shown[:_SHOWN]]
    more = [f"{len(shown) - _SHOWN} more"] if len(shown) > _SHOWN else []
    return f" ({', '.join([*parts, *more])})" if parts else ""


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
