"""How far the tokens of each frame of a video are pooled, so that a longer film fits. Inference only: no model here was trained so.

A frame with factor p keeps 1 / p**2 of its tokens: its square grid of tokens is averaged over squares of p x p.
A leaf (standard library only): it is copied into exported checkpoints.
"""

from __future__ import annotations

import math
import re
from typing import NamedTuple

STRATEGIES: dict[str, dict[str, tuple[int, int]]] = {
    # parameter: (default, least value)
    "none": {},
    "slow_fast": {"every": (4, 1), "factor": (4, 1)},
    "progressive": {"full": (16, 0), "half": (32, 0), "factor": (4, 2)},
}
"""slow_fast: frames 0, `every`, 2 * `every` and so on are full, the others are pooled by `factor`. progressive: the last `full` frames are
full, the `half` frames before them are pooled by 2, all older ones by `factor`. The defaults are ours."""

_FORM = re.compile(r"(\w+)(?::(\w+=-?\d+(?:,\w+=-?\d+)*))?")


class FramePooling(NamedTuple):
    """A strategy with its parameters."""

    strategy: str
    """One of STRATEGIES."""
    parameters: dict[str, int]
    """All of the strategy's parameters."""

    def factors(self, num_frames: int) -> list[int]:
        """The factor of each frame of one video, in the order of the frames."""
        if self.strategy == "slow_fast":
            every, factor = self.parameters["every"], self.parameters["factor"]
            return [1 if frame % every == 0 else factor for frame in range(num_frames)]
        if self.strategy == "progressive":
            full, half, factor = (self.parameters[name] for name in ("full", "half", "factor"))
            ages = range(num_frames - 1, -1, -1)
            return [1 if age < full else 2 if age < full + half else factor for age in ages]
        return [1] * num_frames


def read_pooling(text: str | None, tokens_per_tile: int) -> FramePooling:
    """A strategy from its text: "slow_fast:every=8,factor=4", "progressive:full=16,half=32,factor=4", or "none".

    Parameters that are left out have their defaults.

    Args:
        text: the strategy; None is "none".
        tokens_per_tile: tokens of a frame that is not pooled.

    Raises:
        ValueError: an unknown strategy or parameter, a value out of range, or a factor that does not divide the side of a frame's grid.
    """
    match = _FORM.fullmatch(text or "none")
    if match is None or match[1] not in STRATEGIES:
        known = "none, slow_fast:every=4,factor=4 or progressive:full=16,half=32,factor=4"
        raise ValueError(f"frame pooling is {text!r}; expected {known}")
    known_parameters = STRATEGIES[match[1]]
    found = {name: default for name, (default, _) in known_parameters.items()}
    for name, value in (pair.split("=") for pair in (match[2] or "").split(",") if pair):
        if name not in known_parameters:
            names = ", ".join(known_parameters) or "none"
            raise ValueError(f"frame pooling {text!r} has the unknown parameter {name}; {match[1]} has: {names}")
        if int(value) < known_parameters[name][1]:
            raise ValueError(f"frame pooling {text!r} has {name}={value}; expected at least {known_parameters[name][1]}")
        found[name] = int(value)
    pooling = FramePooling(match[1], found)
    for factor in _factors_used(pooling):
        pooled_tokens(tokens_per_tile, factor)
    return pooling


def pooled_tokens(tokens_per_tile: int, factor: int) -> int:
    """Tokens of a frame that is pooled by a factor.

    Raises:
        ValueError: the factor does not divide the side of the frame's grid, or the tokens are no square grid.
    """
    side = math.isqrt(tokens_per_tile)
    if factor != 1 and side * side != tokens_per_tile:
        raise ValueError(f"a frame has {tokens_per_tile} tokens, which are no square grid; frame pooling needs one: leave it out")
    if factor != 1 and side % factor:
        raise ValueError(f"frame pooling by {factor} does not divide a frame's grid of {side} x {side} tokens; choose a divisor of {side}")
    return tokens_per_tile // factor**2


def _factors_used(pooling: FramePooling) -> set[int]:
    """The factors that some frame of some video can have."""
    used = {pooling.parameters.get("factor", 1)}
    return used | {2} if pooling.parameters.get("half") else used
