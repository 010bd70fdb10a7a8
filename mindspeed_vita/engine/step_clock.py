"""Where the time of a step goes, on this rank's device."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

from mindspeed_vita.platform import Platform

Part = Literal["schedule", "data", "forward", "optimizer"]


class StepClock:
    """Takes marks on the device's timeline, which costs no wait, and reads them once the step is over.

    Args:
        platform: this rank's device.
    """

    def __init__(self, platform: Platform) -> None:
        self._platform = platform
        self.begin()

    def begin(self) -> None:
        """A step starts."""
        self._spans: list[tuple[Part, Any, Any]] = []

    @contextmanager
    def part(self, name: Part) -> Iterator[None]:
        """The block is part of the step; "schedule" holds "data" and "forward"."""
        start = self._platform.mark()
        yield
        self._spans.append((name, start, self._platform.mark()))

    def seconds(self) -> dict[str, float]:
        """Seconds of each part, by its key in metrics.jsonl. The device must have been waited for (Platform.synchronize).

        forward_seconds: the model, forward. optimizer_seconds: norm, clipping and update. backward_seconds: what else the schedule took,
        but for data: the backward pass, layers that it computes again, waits for other stages, and the reduction of gradients.
        """
        found = dict.fromkeys(("schedule", "data", "forward", "optimizer"), 0.0)
        for name, start, end in self._spans:
            found[name] += self._platform.seconds_between(start, end)
        backward = max(found["schedule"] - found["data"] - found["forward"], 0.0)
        return {"forward_seconds": found["forward"], "backward_seconds": backward, "optimizer_seconds": found["optimizer"]}
