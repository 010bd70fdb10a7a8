"""The view of `vita watch`: how a run goes, in the terminal."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta

from rich.console import Console, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from mindspeed_vita.report.chart import shown
from mindspeed_vita.report.json_lines import Entry, finite
from mindspeed_vita.report.run_files import RunFiles
from mindspeed_vita.report.tables import DONE
from mindspeed_vita.wording import printable

_BARS = "▁▂▃▄▅▆▇█"
_WIDTH = 40
"""Characters of a small curve."""
_RECENT = 50
"""Steps that speeds and times are taken of."""
_QUIET = 60.0
"""Seconds without a line that are always in order."""
_MOST_SOURCES = 12
_PARTS = ("forward", "backward", "exchange", "optimizer")
"""Those of "exchange" are within "forward" and "backward"."""


def watch(run: RunFiles, console: Console, *, every: float, pause: Callable[[float], None] = time.sleep) -> None:
    """Shows a run until it is over.

    Args:
        run: the run.
        console: a terminal.
        every: seconds between two looks.
        pause: waits so many seconds.

    Raises:
        OSError: a file cannot be read.
    """
    run.read()
    with Live(view(run), console=console, auto_refresh=False) as live:
        while not run.over:
            pause(every)
            run.read()
            live.update(view(run), refresh=True)


def view(run: RunFiles) -> RenderableType:
    """The run as it was read last."""
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="bold", no_wrap=True)
    grid.add_column(overflow="fold")
    for name, told in _rows(run):
        grid.add_row(Text(printable(name)), Text(printable(told)))
    return Panel(grid, title=Text(f"{run.name}  {printable(run.folder)}"), title_align="left")


def _rows(run: RunFiles) -> Iterator[tuple[str, str]]:
    yield "step", _position(run)
    if run.steps:
        last = run.steps[-1]
        yield from _curves(run, last)
        yield from _speeds(run, last)
    if run.evaluations and (held_out := run.curve("eval/loss")):
        best, at = min((loss, step) for step, loss in held_out)
        yield "held-out loss", f"{shown(held_out[-1][1])} at step {held_out[-1][0]:,.0f}, lowest {shown(best)} at step {at:,.0f}"
    if run.bad:
        last = run.bad[-1]
        yield "bad steps", f"{len(run.bad):,}, the last: step {last['step']:,}, {last['why']} ({DONE.get(last['action'], last['action'])})"
    if run.failed:
        yield "failed samples", f"{len(run.failed):,}, the last: {run.failed[-1]['reason']}"
    if run.saved:
        yield "saved steps", ", ".join(f"{step:,}" for step in run.saved[-5:])
    for step, gate in run.gates[-5:]:
        yield "gate", f"{step}: {gate.describe()}"
    for note in run.notes:
        yield "damaged", note


def _position(run: RunFiles) -> str:
    if not run.steps:
        return "no step is logged yet"
    step, seconds = run.steps[-1]["step"], _median(run, "seconds")
    if run.over:
        return f"{run.saved[-1]:,}, the run is over"  # a last step with bad numbers has no line
    if run.last_step is None:
        why = "a checkpoint says how many there will be; none is saved yet"
        if run.saved:
            longer = "it goes on beyond the last step of before; its next checkpoint says of how many"
            why = longer if run.recipe else "its checkpoints do not say of how many"
        told = f"{step:,} ({why})"
    else:
        left = "" if seconds is None else f", {timedelta(seconds=round(seconds * max(0, run.last_step - step)))} left"
        told = f"{step:,} of {run.last_step:,}, {step / max(1, run.last_step):.0%}{left}"
    age = run.silence
    if age > max(_QUIET, max(10, 2 * run.steps_per_line) * (seconds or 0)):
        told += f"; NO NEW LINE for {timedelta(seconds=round(age))}: the run was stopped, hangs, evaluates or saves"
    return told


def _curves(run: RunFiles, last: Entry) -> Iterator[tuple[str, str]]:
    yield "loss", _line(run, last, "loss")
    sources = sorted(key for key in run.keys() if key.startswith("loss/"))
    for key in sources[:_MOST_SOURCES]:
        yield f"  {key.removeprefix('loss/')}", _line(run, last, key)
    if len(sources) > _MOST_SOURCES:
        yield "", f"{len(sources) - _MOST_SOURCES} more sources"
    yield "gradient norm", _line(run, last, "grad_norm")
    for key in sorted(key for key in run.keys() if key.startswith("grad_norm/")):
        yield f"  {key.removeprefix('grad_norm/')}", _line(run, last, key)
    if (rate := finite(last, "lr")) is not None:
        yield "learning rate", f"{rate:.3g}"


def _line(run: RunFiles, last: Entry, key: str) -> str:
    values = [value for _, value in run.curve(key)]
    now = finite(last, key)
    told = shown(now) if now is not None else ("not finite" if key in last else "-")
    return f"{told:<10} {_small_curve(values)}" if values else told


def _speeds(run: RunFiles, last: Entry) -> Iterator[tuple[str, str]]:
    if (speed := _median(run, "tokens_per_second")) is not None:
        yield "tokens/s", f"{shown(speed):<10} {_small_curve([value for _, value in run.curve('tokens_per_second')])}"
    if tiles := _median(run, "tiles_per_second"):
        yield "tiles/s", shown(tiles)
    seconds, waited = _median(run, "seconds"), _median(run, "data_seconds")
    if seconds is not None:
        share = f", {waited / seconds:.0%} of it waiting for data" if waited is not None and seconds > 0 else ""
        yield "seconds a step", f"{shown(seconds)}{share}"
    if seconds and (parts := [(name, spent) for name in _PARTS if (spent := _median(run, f"{name}_seconds"))]):
        yield "  parts of it", ", ".join(f"{name} {spent / seconds:.0%}" for name, spent in parts)
    if (mfu := _median(run, "mfu")) is not None:
        yield "MFU", f"{mfu:.1%}"
    if (memory := finite(last, "memory")) is not None:
        yield "memory", f"{memory / 2**30:,.2f} GiB at most on rank 0"


def _median(run: RunFiles, key: str) -> float | None:
    values = [value for entry in run.steps[-_RECENT:] if (value := finite(entry, key)) is not None]
    return statistics.median(values) if values else None


def _small_curve(values: Sequence[float]) -> str:
    """Means of up to _WIDTH stretches of the values, as bars."""
    size = -(-len(values) // _WIDTH)
    means = [statistics.fmean(values[start : start + size]) for start in range(0, len(values), size)]
    low, high = min(means), max(means)
    width = high - low
    return "".join(_BARS[round((value - low) / width * (len(_BARS) - 1))] if width > 0 else _BARS[0] for value in means)
