"""A line chart as inline SVG in an HTML figure, with its legend and a table of its numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from mindspeed_vita.wording import printable

_WIDTH, _HEIGHT, _LEFT, _TOP, _RIGHT, _BOTTOM = 640, 260, 64, 12, 14, 40
_POINTS = 600
"""Most points of a line."""
_THOUSANDS = "kMGTPE"
"""Letters for 1e3, 1e6 and so on."""
COLOURS = 8
"""The style sheet has so many; further lines are dashed."""
Points = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Series:
    """One line, or dots."""

    name: str
    points: Points
    """(step, value), steps ascending, values finite."""
    dots: bool = False
    colour: int | None = None
    """Number of the colour; None: the place in the chart."""


def text(value: object) -> str:
    """Anything from a file as text of the page."""
    return escape(printable(value))


def shown(value: float) -> str:
    """A number for people."""
    if value == 0 or 0.001 <= abs(value) < 1e15:
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return f"{value:.3g}"


def _label(value: float) -> str:
    """As `shown`, but short enough for the margin: 14.7M, 2.1P."""
    if abs(value) < 1e5 or abs(value) >= 1e21:
        return shown(value)
    power = min(len(_THOUSANDS), int(math.log10(abs(value)) + 1e-9) // 3)
    return f"{value / 1000**power:.4g}{_THOUSANDS[power - 1]}"


def figure(title: str, series: Sequence[Series], *, logarithmic: bool = False, smooth: bool = False, note: str = "") -> str:
    """One chart; empty where no series has a point.

    Args:
        title: above it, with the unit.
        series: lines and dots.
        logarithmic: take a logarithmic axis if all values are positive.
        smooth: draw lines thin, and the running mean of a twentieth of their points over them.
        note: below it.
    """
    series = [one for one in series if one.points]
    if not series:
        return ""
    axes = _Axes(series, logarithmic)
    parts = [f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{text(title)}">', *axes.grid()]
    legend = []
    for place, one in enumerate(series):
        number = place if one.colour is None else one.colour
        style = f'class="line c{number % COLOURS}{" dashed" if number >= COLOURS else ""}"'
        hover = f"<title>{text(one.name)}</title>"
        if one.dots:
            parts += [f"<g {style}>{hover}", *(f'<circle cx="{x}" cy="{y}" r="3.5"/>' for x, y in map(axes.place, one.points)), "</g>"]
        else:
            raw = f"<g {style}>{hover}{axes.line(one.points, 'raw' if smooth else '')}"
            parts.append(f"{raw}{axes.line(_means(one.points), 'mean') if smooth else ''}</g>")
        sign = "&#9679;" if one.dots else "&#9473;"
        legend.append(f'<span><b class="c{number % COLOURS}" aria-hidden="true">{sign}</b> {text(one.name)}</span>')
    parts.append("</svg>")
    below = f"<p>{text(note)}</p>" if note else ""
    return (
        f"<figure><figcaption>{text(title)}</figcaption>{''.join(parts)}"
        f'<div class="legend">{"".join(legend)}</div>{below}{_numbers(series)}</figure>'
    )


def _numbers(series: Sequence[Series]) -> str:
    rows: list[Sequence[object]] = [("", "points", "first", "last", "lowest", "highest")]
    for one in series:
        values = [value for _, value in one.points]
        numbers = (values[0], values[-1], min(values), max(values))
        rows.append((one.name, f"{len(values):,}", *map(shown, numbers)))
    return f"<details><summary>Numbers</summary>{table(rows)}</details>"


def table(rows: Sequence[Sequence[object]]) -> str:
    """An HTML table whose first row is its head; all cells are escaped."""
    head = "".join(f"<th>{text(cell)}</th>" for cell in rows[0])
    body = "".join(f"<tr>{''.join(f'<td>{text(cell)}</td>' for cell in row)}</tr>" for row in rows[1:])
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


class _Axes:
    """Where a step and a value lie in the picture."""

    def __init__(self, series: Sequence[Series], logarithmic: bool) -> None:
        steps = [step for one in series for step, _ in one.points]
        values = [value for one in series for _, value in one.points]
        self._logarithmic = logarithmic and min(values) > 0
        self._first, self._last = min(steps), max(max(steps), min(steps) + 1)
        self._low, self._high = _widened(self._scaled(min(values)), self._scaled(max(values)))

    def _scaled(self, value: float) -> float:
        return math.log10(value) if self._logarithmic else value

    def place(self, point: tuple[float, float]) -> tuple[str, str]:
        x = _LEFT + (point[0] - self._first) / (self._last - self._first) * (_WIDTH - _LEFT - _RIGHT)
        y = _TOP + (self._high - self._scaled(point[1])) / (self._high - self._low) * (_HEIGHT - _TOP - _BOTTOM)
        return f"{x:.1f}", f"{y:.1f}"

    def line(self, points: Points, kind: str) -> str:
        drawn = " ".join(",".join(self.place(point)) for point in _thinned(points))
        if len(points) == 1:
            x, y = self.place(points[0])
            return f'<circle cx="{x}" cy="{y}" r="2.5"/>'
        return f'<polyline class="{kind}" points="{drawn}"/>'

    def grid(self) -> list[str]:
        parts = []
        for share in range(5):
            scaled = self._low + (self._high - self._low) * share / 4
            value = 10**scaled if self._logarithmic else scaled
            y = _HEIGHT - _BOTTOM - share / 4 * (_HEIGHT - _TOP - _BOTTOM)
            parts.append(f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
            parts.append(f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{_label(value)}</text>')
            x = _LEFT + share / 4 * (_WIDTH - _LEFT - _RIGHT)
            step = self._first + (self._last - self._first) * share / 4
            parts.append(f'<text x="{x:.1f}" y="{_HEIGHT - 22}" text-anchor="middle">{step:,.0f}</text>')
        parts.append(f'<text x="{(_LEFT + _WIDTH) / 2:.0f}" y="{_HEIGHT - 4}" text-anchor="middle">optimizer step</text>')
        return parts


def _widened(low: float, high: float) -> tuple[float, float]:
    """A range that is wide enough to divide by."""
    if high - low > 1e-9 * max(abs(low), abs(high), 1e-90):
        return low, high
    half = abs(low) / 2 or 0.5
    return low - half, high + half


def _thinned(points: Points) -> Points:
    """At most _POINTS of them: of each stretch the lowest and the highest, so that peaks stay."""
    if len(points) <= _POINTS:
        return points
    size = -(-2 * len(points) // (_POINTS - 2))
    kept = {points[0], points[-1]}
    for start in range(0, len(points), size):
        part = points[start : start + size]
        kept |= {min(part, key=lambda point: point[1]), max(part, key=lambda point: point[1])}
    return sorted(kept)


def _means(points: Points) -> Points:
    """The running mean over a twentieth of the points."""
    window, total, means = max(1, len(points) // 20), 0.0, []
    for place, (step, value) in enumerate(points):
        total += value - (points[place - window][1] if place >= window else 0.0)
        means.append((step, total / min(window, place + 1)))
    low = min(value for _, value in points)
    return [(step, max(low, value)) for step, value in means]  # rounding must not leave the chart
