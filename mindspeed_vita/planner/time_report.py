"""A layout's times as text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from mindspeed_vita.planner.timing import Timing

NAMES = {
    "matrix": "layers' matrix products",
    "attention": "attention",
    "tower": "tower and projector",
    "head": "head",
    "memory": "operators between products",
    "tensor": "tensor parallel collectives",
    "exchange": "exchange of tiles and heads",
    "ring": "ring, not hidden",
    "pipeline": "pipeline sends",
    "bubble": "pipeline idle",
    "replicas": "reduction over replicas",
    "optimizer": "optimizer",
}
_HOUR, _DAY = 3600, 86400
STATUS = {
    "npu": "not validated: of 8 published decoders on the 910B, 6 are within 20%; the original's four stages took 1.4 to 2.2 times as long",
    "cuda": "not validated: no published step of this device was compared",
}
"""What stands next to a time, by the kind of the device. docs/planner.md has the residuals."""


def time_table(timing: Timing, ranks: Sequence[str]) -> Iterator[str]:
    """Seconds by part, one column for each rank, and what follows for the run.

    Args:
        timing: of the layout.
        ranks: names of the columns.
    """
    status = STATUS[timing.device.kind]
    yield _row(f"time of a step on {timing.device.name}, s", ranks)
    for key, name in NAMES.items():
        values = [time.parts()[key] for time in timing.ranks]
        if any(values):
            yield _row(f"  {name}", [f"{value:,.3f}" for value in values])
    yield _row("  together", [f"{time.seconds:,.3f}" for time in timing.ranks])
    if timing.scale is not None:
        yield _row("  calibrated", [f"{time.seconds:,.3f}" for time in timing.times])
    yield from _whole("model", timing, timing.modelled)
    if timing.scale is not None:
        yield from _whole("calibrated", timing, timing.seconds)
    yield f"  {status}"


def _whole(name: str, timing: Timing, seconds: float) -> Iterator[str]:
    speed = f"{timing.speed(seconds):,.0f} tokens/s per device, MFU {timing.utilisation(seconds):.1%}"
    yield f"  {name}: {seconds:,.2f} s a step, {speed}, {timing.steps:,} steps in {_long(timing.steps * seconds)}"


def _long(seconds: float) -> str:
    return f"{seconds / _HOUR:,.1f} h" if seconds < 2 * _DAY else f"{seconds / _DAY:,.1f} days"


def _row(name: str, cells: Sequence[str]) -> str:
    return f"{name:<38}" + "".join(f"{cell:>20}" for cell in cells)
