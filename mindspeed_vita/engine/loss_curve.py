"""The loss curve of a run as an SVG picture, drawn from its metrics.jsonl."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Optional

from mindspeed_vita.engine.metrics import HELD_OUT_LOSS
from mindspeed_vita.files.writing import write_text

_WIDTH, _HEIGHT, _LEFT, _TOP, _RIGHT, _BOTTOM = 900, 420, 70, 40, 20, 50
_POINTS = 800
"""Most points of a line."""


def write_loss_curve(directory: Path) -> Optional[Path]:
    """Draws <directory>/loss.svg.

    Returns:
        The picture; None where metrics.jsonl holds fewer than two finite losses.

    Raises:
        OSError: the file cannot be written.
    """
    metrics = directory / "metrics.jsonl"
    if not metrics.is_file():
        return None
    entries = [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()]

    def column(key: str) -> list[tuple[int, float]]:
        return [(entry["step"], entry[key]) for entry in entries if math.isfinite(entry.get(key, math.nan))]

    points = column("loss")
    if len(points) < 2:
        return None
    picture = directory / "loss.svg"
    held_out = [point for point in column(HELD_OUT_LOSS) if points[0][0] <= point[0] <= points[-1][0]]  # the start lies before them
    write_text(picture, loss_curve([step for step, _ in points], [loss for _, loss in points], held_out))
    return picture


def loss_curve(steps: Sequence[int], losses: Sequence[float], held_out: Sequence[tuple[int, float]] = ()) -> str:
    """An SVG document: every loss as a thin line, their running mean as a thick one, and held-out losses as dots.

    The vertical axis is logarithmic where all losses are positive. The mean is over a twentieth of the points.

    Args:
        steps: ascending, at least two.
        losses: one for each step, finite.
        held_out: (step, loss) of evaluations, steps within those, finite.
    """
    window = max(1, len(losses) // 20)
    sums = [0.0]
    for loss in losses:
        sums.append(sums[-1] + loss)
    means = [(sums[place + 1] - sums[max(0, place + 1 - window)]) / min(window, place + 1) for place in range(len(losses))]
    shown = [*losses, *(loss for _, loss in held_out)]
    scale = math.log10 if min(shown) > 0 else float
    low, high = scale(min(shown)), scale(max(shown))
    high = high if high > low else low + 1

    def place(step: float, loss: float) -> str:
        x = _LEFT + (step - steps[0]) / (steps[-1] - steps[0]) * (_WIDTH - _LEFT - _RIGHT)
        y = _TOP + (high - scale(loss)) / (high - low) * (_HEIGHT - _TOP - _BOTTOM)
        return f"{x:.1f},{y:.1f}"

    def line(values: Sequence[float], style: str) -> str:
        every = -(-len(values) // _POINTS)
        chosen = sorted({*range(0, len(values), every), len(values) - 1})
        return f'<polyline fill="none" {style} points="{" ".join(place(steps[n], values[n]) for n in chosen)}"/>'

    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{_HEIGHT}" font-family="sans-serif" font-size="12">']
    parts.append(f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="white"/>')
    dots = "; dots: held-out loss" if held_out else ""
    parts.append(f'<text x="{_LEFT}" y="20">loss; thick: mean of {window} steps that were logged{dots}</text>')
    for share in range(5):
        value = low + (high - low) * share / 4
        loss = 10**value if scale is math.log10 else value
        y = float(place(steps[0], loss).split(",")[1])
        parts.append(f'<line x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}" stroke="#dddddd"/>')
        parts.append(f'<text x="{_LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{loss:.3g}</text>')
        step = steps[0] + (steps[-1] - steps[0]) * share / 4
        x = place(step, losses[0]).split(",")[0]
        parts.append(f'<text x="{x}" y="{_HEIGHT - 28}" text-anchor="middle">{step:,.0f}</text>')
    parts.append(f'<text x="{_WIDTH / 2:.0f}" y="{_HEIGHT - 8}" text-anchor="middle">optimizer step</text>')
    parts.append(line(losses, 'stroke="#9dc3e6" stroke-width="0.8"'))
    parts.append(line(means, 'stroke="#1f5fa8" stroke-width="2"'))
    centres = (place(step, loss).split(",") for step, loss in held_out)
    parts += [f'<circle cx="{x}" cy="{y}" r="3.5" fill="#c0392b"/>' for x, y in centres]
    return "\n".join([*parts, "</svg>", ""])
