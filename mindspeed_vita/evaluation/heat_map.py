"""A picture of shares over two axes, one panel beside the other, as SVG and as PNG. Both are drawn from one list of shapes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.sax.saxutils import escape

from PIL import Image, ImageDraw, ImageFont

from mindspeed_vita.files.publish import whole_file

_CELL_WIDTH, _CELL_HEIGHT = 64, 30
_LEFT, _TOP, _BOTTOM, _GAP = 64, 58, 44, 24
_FONT = 13
_INK, _PAPER, _NOTHING = (30, 30, 30), (255, 255, 255), (225, 225, 225)
_SCALE = ((0.0, (178, 24, 43)), (0.5, (253, 219, 160)), (1.0, (26, 126, 68)))
"""Colours of the shares 0, one half and 1; between them they run evenly."""
_LIGHT = 130
"""Text on a cell darker than this is white."""


@dataclass(frozen=True)
class Panel:
    """One table of shares."""

    title: str
    columns: Sequence[str]
    """Names, from left to right."""
    rows: Sequence[str]
    """Names, from top to bottom."""
    shares: Sequence[Sequence[float | None]]
    """Of each row, 0 to 1; None where nothing was asked."""
    line_after: int | None = None
    """A line behind so many columns."""


@dataclass(frozen=True)
class _Box:
    left: float
    top: float
    width: float
    height: float
    colour: tuple[int, int, int]


@dataclass(frozen=True)
class _Text:
    x: float
    y: float
    text: str
    anchor: str
    """start, middle or end of the text is at x; y is its middle."""
    colour: tuple[int, int, int] = _INK


@dataclass(frozen=True)
class _Drawing:
    width: int
    height: int
    shapes: tuple[_Box | _Text, ...]


def write_heat_map(panels: Sequence[Panel], stem: Path, *, x_axis: str, y_axis: str) -> tuple[Path, Path]:
    """Writes the panels as STEM.svg and STEM.png; returns both.

    Args:
        panels: at least one.
        stem: path without a suffix.
        x_axis, y_axis: what columns and rows are.
    """
    drawing = _draw(panels, x_axis, y_axis)
    svg, png = stem.with_name(stem.name + ".svg"), stem.with_name(stem.name + ".png")
    with whole_file(svg) as temporary:
        temporary.write_text(_svg(drawing), encoding="utf-8")
    with whole_file(png) as temporary:
        _png(drawing).save(temporary, format="PNG")
    return svg, png


def colour_of(share: float | None) -> tuple[int, int, int]:
    """Red for 0, green for 1, grey for nothing."""
    if share is None:
        return _NOTHING
    for (low, first), (high, last) in zip(_SCALE, _SCALE[1:]):
        if share <= high:
            part = (share - low) / (high - low)
            red, green, blue = (round(a + part * (b - a)) for a, b in zip(first, last))
            return red, green, blue
    raise ValueError(f"a share of {share}; expected 0 to 1")


def _draw(panels: Sequence[Panel], x_axis: str, y_axis: str) -> _Drawing:
    shapes: list[_Box | _Text] = []
    left, height = 0, 0
    for panel in panels:
        shapes += _panel(panel, left + _LEFT, x_axis, y_axis)
        left += _LEFT + _CELL_WIDTH * len(panel.columns) + _GAP
        height = max(height, _TOP + _CELL_HEIGHT * len(panel.rows) + _BOTTOM)
    return _Drawing(left, height, tuple(shapes))


def _panel(panel: Panel, left: int, x_axis: str, y_axis: str) -> list[_Box | _Text]:
    right, bottom = left + _CELL_WIDTH * len(panel.columns), _TOP + _CELL_HEIGHT * len(panel.rows)
    shapes: list[_Box | _Text] = [
        _Text(left, 18, panel.title, "start"),
        _Text(left - 8, _TOP - 16, y_axis, "end"),
        _Text((left + right) / 2, bottom + 32, x_axis, "middle"),
    ]
    for row, (name, shares) in enumerate(zip(panel.rows, panel.shares, strict=True)):
        top = _TOP + _CELL_HEIGHT * row
        shapes.append(_Text(left - 8, top + _CELL_HEIGHT / 2, name, "end"))
        for column, share in enumerate(shares):
            colour = colour_of(share)
            shapes.append(_Box(left + _CELL_WIDTH * column, top, _CELL_WIDTH - 1, _CELL_HEIGHT - 1, colour))
            ink = _PAPER if sum(colour) / 3 < _LIGHT else _INK
            shown = "-" if share is None else f"{share:.0%}"
            shapes.append(_Text(left + _CELL_WIDTH * (column + 0.5), top + _CELL_HEIGHT / 2, shown, "middle", ink))
    for column, name in enumerate(panel.columns):
        shapes.append(_Text(left + _CELL_WIDTH * (column + 0.5), bottom + 12, name, "middle"))
    if panel.line_after is not None:
        shapes.append(_Box(left + _CELL_WIDTH * panel.line_after - 2, _TOP - 8, 3, bottom - _TOP + 16, _INK))
    return shapes


def _svg(drawing: _Drawing) -> str:
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{drawing.width}" height="{drawing.height}" font-family="sans-serif" '
        f'font-size="{_FONT}">',
        f'<rect width="100%" height="100%" fill="{_hex(_PAPER)}"/>',
    ]
    for shape in drawing.shapes:
        if isinstance(shape, _Box):
            place = f'x="{shape.left:g}" y="{shape.top:g}" width="{shape.width:g}" height="{shape.height:g}"'
            lines.append(f'<rect {place} fill="{_hex(shape.colour)}"/>')
        else:
            place = f'x="{shape.x:g}" y="{shape.y + _FONT / 3:g}" text-anchor="{shape.anchor}"'
            lines.append(f'<text {place} fill="{_hex(shape.colour)}">{escape(shape.text)}</text>')
    return "\n".join([*lines, "</svg>"]) + "\n"


def _png(drawing: _Drawing) -> Image.Image:
    picture = Image.new("RGB", (drawing.width, drawing.height), _PAPER)
    pen, font = ImageDraw.Draw(picture), ImageFont.load_default()
    for shape in drawing.shapes:
        if isinstance(shape, _Box):
            # Pillow's boxes include their last pixel
            pen.rectangle((shape.left, shape.top, shape.left + shape.width - 1, shape.top + shape.height - 1), fill=shape.colour)
        else:
            left, top, right, bottom = pen.textbbox((0, 0), shape.text, font=font)
            share = {"start": 0.0, "middle": 0.5, "end": 1.0}[shape.anchor]
            pen.text((shape.x - share * (right - left), shape.y - (top + bottom) / 2), shape.text, fill=shape.colour, font=font)
    return picture


def _hex(colour: tuple[int, int, int]) -> str:
    return f"#{bytes(colour).hex()}"
