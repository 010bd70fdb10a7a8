"""The frames of a needle test: hay, and cards that show a coloured shape in front of a plain wall. Each is a function of its own name.

Nothing is stored: the same frame at the same size has the same pixels on every machine. Shape legend: S side in pixels.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any, Callable, Union

import numpy as np

COLOURS = {
    "red": (205, 45, 40),
    "green": (40, 150, 60),
    "blue": (45, 80, 200),
    "yellow": (230, 200, 50),
    "pink": (235, 110, 190),
    "cyan": (60, 200, 210),
}
"""Colours of shapes."""

WALLS = {"black": (25, 25, 25), "white": (235, 235, 235)}
"""Colours of walls; none of them is a shape's."""

SHAPES: dict[str, Callable[[Any, Any], Any]] = {
    "ball": lambda x, y: x**2 + y**2 < 1,
    "square": lambda x, y: np.maximum(abs(x), abs(y)) < 0.9,
    "triangle": lambda x, y: (y < 0.8) & (2 * abs(x) - 0.9 < y),
    "cross": lambda x, y: (np.minimum(abs(x), abs(y)) < 0.3) & (np.maximum(abs(x), abs(y)) < 1),
}
"""Where each shape is, in units of its radius from its middle; y points down."""

_BANDS = 4
_SHADE = 20
"""A colour varies by so much, of 255."""


@dataclass(frozen=True)
class Hay:
    """A frame of wavy, muted bands: neither a wall nor a shape."""

    number: int
    """Which one."""

    @property
    def name(self) -> str:
        """A name that no other frame has; fit for a file."""
        return f"hay_{self.number}"


@dataclass(frozen=True)
class Card:
    """A frame with a shape in front of a wall."""

    wall: str
    """One of WALLS."""
    shape: str
    """One of SHAPES; empty: the wall alone."""
    colour: str
    """One of COLOURS; empty: the wall alone."""
    number: int
    """Which one of those that show the same: place, size and shades differ."""

    @property
    def name(self) -> str:
        """A name that no other frame has; fit for a file."""
        shown = f"{self.colour}_{self.shape}" if self.shape else "nothing"
        return f"card_{self.wall}_{shown}_{self.number}"


Frame = Union[Hay, Card]


def render(frame: Frame, side: int) -> np.ndarray:
    """The pixels of a frame: uint8[S, S, 3].

    Args:
        frame: what it shows.
        side: S, pixels. A tile's side needs no resizing.
    """
    draw = random.Random(frame.name)
    y_SS, x_SS = (axis / side for axis in np.mgrid[0:side, 0:side] + 0.5)
    if isinstance(frame, Hay):
        return _bands(x_SS, y_SS, draw)
    pixels = np.empty((side, side, 3), np.uint8)
    pixels[:] = _shade(WALLS[frame.wall], draw)
    if frame.shape:
        radius = draw.uniform(0.25, 0.4)
        middle_x, middle_y = draw.uniform(radius, 1 - radius), draw.uniform(radius, 1 - radius)
        inside = SHAPES[frame.shape]((x_SS - middle_x) / radius, (y_SS - middle_y) / radius)
        pixels[inside] = _shade(COLOURS[frame.colour], draw)
    return pixels


def _bands(x_SS: np.ndarray, y_SS: np.ndarray, draw: random.Random) -> np.ndarray:
    height, turns, phase = draw.uniform(0.02, 0.1), draw.uniform(3, 12), draw.uniform(0, 6)
    wave_SS = y_SS + height * np.sin(turns * x_SS + phase)
    edges = sorted(draw.uniform(0.1, 0.9) for _ in range(_BANDS - 1))
    greys = [draw.randint(80, 180) for _ in range(_BANDS)]
    colours = np.array([[grey + draw.randint(-25, 25) for _ in range(3)] for grey in greys], np.uint8)
    return colours[np.searchsorted(edges, wave_SS)]


def _shade(colour: tuple[int, int, int], draw: random.Random) -> tuple[int, ...]:
    return tuple(min(255, max(0, value + draw.randint(-_SHADE, _SHADE))) for value in colour)
