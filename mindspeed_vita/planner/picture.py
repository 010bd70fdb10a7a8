"""The memory of a step over its allocations, stacked by part, as an SVG file: one panel for each rank."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from xml.sax.saxutils import escape

import numpy as np

from mindspeed_vita.files.publish import whole_file
from mindspeed_vita.planner.plan import RankPlan
from mindspeed_vita.planner.report import at_the_peak
from mindspeed_vita.planner.trace.result import Trace
from mindspeed_vita.planner.whole_step import MEMORY_ROWS, memory_row

_GIB = 2**30
_COLUMNS = 800
_HEIGHT, _LEFT, _TOP, _BOTTOM, _LEGEND = 320, 70, 48, 40, 260
_FONT = 13
_COLOURS = {
    "weights": "#4e79a7",
    "gradients": "#a0cbe8",
    "optimizer": "#b6992d",
    "saved activations": "#f28e2b",
    "layers at work": "#ffbe7d",
    "attention": "#e15759",
    "tower": "#59a14f",
    "ring": "#b07aa1",
    "exchange": "#d4a6c8",
    "head": "#499894",
    "pipeline": "#9d7660",
    "inputs": "#79706e",
}


def write_picture(plans: Sequence[RankPlan], target: Path, *, title: str, memory: int | None) -> None:
    """Draws the live bytes of a step.

    The horizontal axis is the order of allocations and releases, not time. Where a column stands for several, it shows the fullest.

    Args:
        plans: one panel each.
        target: file to write.
        title: of the picture.
        memory: bytes of a device, drawn as a line; None: no line.
    """
    width = _LEFT + _COLUMNS + _LEGEND
    panel = _TOP + _HEIGHT + _BOTTOM
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{30 + panel * len(plans)}" font-family="sans-serif" '
        f'font-size="{_FONT}">',
        '<rect width="100%" height="100%" fill="#ffffff"/>',
        _text(_LEFT, 22, title),
    ]
    for number, plan in enumerate(plans):
        lines += [f'<g transform="translate(0 {30 + panel * number})">', *_panel(plan, memory), "</g>"]
    with whole_file(target) as temporary:
        temporary.write_text("\n".join([*lines, "</svg>"]) + "\n", encoding="utf-8")


def stacked(trace: Trace, columns: int) -> dict[str, np.ndarray]:
    """Live bytes by part of memory, at the fullest moment of each of some equal stretches of the step. The peak is among them.

    Args:
        trace: of a rank.
        columns: most stretches.

    Returns:
        int64 of the same length for each part that has memory, in the order of MEMORY_ROWS.
    """
    first, live = max(trace.start - 1, 0), trace.live
    bounds = np.unique(np.linspace(0, len(live), columns + 1).astype(np.int64))
    moments = np.array([first + start + int(live[start:stop].argmax()) for start, stop in zip(bounds[:-1], bounds[1:])])
    rows = np.array([MEMORY_ROWS.index(memory_row(place)) for place in trace.places])[trace.owners]
    found = {}
    for number, name in enumerate(MEMORY_ROWS):
        sizes = np.cumsum(np.where(rows == number, trace.changes, 0))[moments]
        if sizes.any():
            found[name] = sizes
    return found


def _panel(plan: RankPlan, memory: int | None) -> list[str]:
    trace = plan.trace
    parts = stacked(trace, _COLUMNS)
    columns = len(next(iter(parts.values())))
    top = 1.08 * max(trace.peak, memory or 0)
    bottom, across = _TOP + _HEIGHT, _COLUMNS / columns

    def height(size: float) -> float:
        return bottom - _HEIGHT * size / top

    lines = [_text(_LEFT, 20, f"rank {plan.rank} ({plan.kind}): peak {trace.peak / _GIB:,.2f} GiB in {at_the_peak(trace)}")]
    below = np.zeros(columns, dtype=np.int64)
    at_peak = int(np.sum(list(parts.values()), axis=0).argmax())
    for number, (name, sizes) in enumerate(parts.items()):
        above = below + sizes
        upper = [f"{_LEFT + across * (column + side):.1f},{height(above[column]):.1f}" for column in range(columns) for side in (0, 1)]
        lower = [f"{_LEFT + across * (column + side):.1f},{height(below[column]):.1f}" for column in range(columns) for side in (0, 1)]
        lines.append(f'<polygon fill="{_COLOURS[name]}" points="{" ".join([*upper, *reversed(lower)])}"/>')
        row = bottom - 18 * number
        lines.append(f'<rect x="{_LEFT + _COLUMNS + 16}" y="{row - 10}" width="12" height="12" fill="{_COLOURS[name]}"/>')
        lines.append(_text(_LEFT + _COLUMNS + 34, row, f"{name}: {sizes[at_peak] / _GIB:,.2f} GiB"))
        below = above
    lines.append(_line(_LEFT + across * (at_peak + 0.5), _TOP, _LEFT + across * (at_peak + 0.5), bottom, "4 3"))
    if memory is not None:
        lines += [_line(_LEFT, height(memory), _LEFT + _COLUMNS, height(memory), "8 4")]
        lines.append(_text(_LEFT + _COLUMNS + 16, height(memory) + 4, f"device: {memory / _GIB:,.0f} GiB"))
    lines += [_line(_LEFT, bottom, _LEFT + _COLUMNS, bottom), _line(_LEFT, _TOP, _LEFT, bottom)]
    for part in range(5):
        size = top * part / 4
        lines.append(_text(_LEFT - 6, height(size) + 4, f"{size / _GIB:,.2f}", "end"))
    lines.append(_text(_LEFT, bottom + 20, "allocations and releases of the step, in order (not time); GiB of tensors"))
    return lines


def _text(x: float, y: float, text: str, anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="#1e1e1e">{escape(text)}</text>'


def _line(x: float, y: float, to_x: float, to_y: float, dashes: str = "") -> str:
    dashed = f' stroke-dasharray="{dashes}"' if dashes else ""
    return f'<line x1="{x:.1f}" y1="{y:.1f}" x2="{to_x:.1f}" y2="{to_y:.1f}" stroke="#1e1e1e"{dashed}/>'
