"""The search for the longest length that fits finds it in few measurements, whatever the curve."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from mindspeed_vita.planner.search import CLOSE, largest_that_fits

CURVES: dict[str, Callable[[int], int]] = {
    "line": lambda length: 10 + length // 7,
    "square": lambda length: 100 + length**2 // 5000,
    "flat, then a line": lambda length: 300 + max(0, length - 500),
}


@pytest.mark.parametrize("curve", CURVES)
@pytest.mark.parametrize("memory", [5, 333, 1000, 3000, 100_000])
def test_the_longest_length_is_found_in_few_measurements(curve: str, memory: int) -> None:
    asked: list[int] = []

    def memory_of(length: int) -> int:
        asked.append(length)
        return CURVES[curve](length)

    found = largest_that_fits(memory_of, start=1024, step=16, limit=65536, memory=memory)
    best = max((length for length in range(16, 65537, 16) if CURVES[curve](length) <= memory), default=0)
    assert best * (1 - CLOSE) - 16 <= found.length <= best and found.limited == (found.length == 65536)
    assert found.memory == CURVES[curve](found.length or 16) and len(asked) == len(set(asked)) <= 12
