"""The largest length whose memory fits, from few measurements: memory is close to a straight line of the length."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

CLOSE = 1 / 32
"""The search ends when the next length that was seen not to fit is within this share."""


@dataclass(frozen=True, kw_only=True)
class Longest:
    """What a search found."""

    length: int
    """Tokens; 0 if not even the step fits."""
    memory: int
    """Bytes at that length; at the step where nothing fits."""
    limited: bool
    """Whether the limit ended the search, and not memory."""


def largest_that_fits(memory_of: Callable[[int], int], *, start: int, step: int, limit: int, memory: int) -> Longest:
    """The largest multiple of `step` up to `limit` whose memory is at most `memory`, to within CLOSE of itself.

    Both the length that is returned and one that does not fit were measured, unless the limit fits.

    Args:
        memory_of: bytes at a length. It must not fall with the length.
        start: the first length to try.
        step: lengths are multiples of it.
        limit: the longest length to try, at least `step`.
        memory: bytes that there are.
    """
    most = limit // step
    seen: dict[int, int] = {}
    fits, exceeds = 0, most + 1
    trial = min(max(start // step, 1), most)
    while exceeds - fits > max(1, int(fits * CLOSE)):
        seen[trial] = memory_of(trial * step)
        if seen[trial] <= memory:
            fits = trial
        else:
            exceeds = trial
        trial = _next(seen, fits, exceeds, memory)
    at = fits or 1
    return Longest(length=fits * step, memory=seen[at], limited=fits == most)


def _next(seen: dict[int, int], fits: int, exceeds: int, memory: int) -> int:
    """Between the two bounds: on the straight line through them, every other time in the middle, so that a curve ends as well."""
    if exceeds not in seen:  # nothing was too large so far
        return min(fits * 2, exceeds - 1) if len(seen) < 2 else min(max(_on_the_line(seen, memory), fits + 1), exceeds - 1)
    if not fits:
        return max(exceeds // 2, 1)
    if len(seen) % 2:
        return (fits + exceeds) // 2
    guess = fits + int((exceeds - fits) * (memory - seen[fits]) / (seen[exceeds] - seen[fits]))
    margin = max(1, int(fits * CLOSE / 2))  # a little to the nearer side: then both bounds close in on the guess
    guess += margin if guess - fits <= margin else -margin if exceeds - guess <= margin else 0
    return min(max(guess, fits + 1), exceeds - 1)


def _on_the_line(seen: dict[int, int], memory: int) -> int:
    """Where the line through the two longest lengths meets the memory, and a little beyond."""
    first, second = sorted(seen)[-2:]
    rise = (seen[second] - seen[first]) / (second - first)
    return 4 * second if rise <= 0 else int((1 + CLOSE / 2) * (first + (memory - seen[first]) / rise))
