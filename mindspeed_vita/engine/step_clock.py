"""Where the time of a step goes, on this rank's device."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any, Literal, get_args

from mindspeed_vita.platform import Platform
from mindspeed_vita.platform.phases import Timer

Part = Literal["schedule", "data", "forward", "exchange", "optimizer"]
_PHASES: tuple[Part, ...] = ("data", "exchange", "optimizer")
"""Parts that are phases."""


class StepClock:
    """Takes marks on the device's timeline, which costs no wait, and reads them once the step is over.

    Args:
        platform: this rank's device.
    """

    def __init__(self, platform: Platform) -> None:
        self._platform = platform
        self.begin()

        self.phases: Mapping[str, Timer] = {name: partial(self.part, name) for name in _PHASES}
        """Timers of the phases that are parts, for platform.phases.timed."""

    def begin(self) -> None:
        """A step starts."""
        self._spans: list[tuple[Part, Any, Any]] = []

    @contextmanager
    def part(self, name: Part) -> Iterator[None]:
        """The block is part of the step; "schedule" holds "data" and "forward", and any part may hold "exchange"."""
        start = self._platform.mark()
        yield
        self._spans.append((name, start, self._platform.mark()))

    def mark(self) -> Any:
        """A moment of the step, for `note`."""
        return self._platform.mark()

    def note(self, name: Part, start: Any) -> None:
        """What was done from a mark until now is a part of the step; for engines whose loop leaves no place for a block."""
        self._spans.append((name, start, self._platform.mark()))

    def seconds(self) -> dict[str, float]:
        """Seconds of each part, by its key in metrics.jsonl. The device must have been waited for (Platform.synchronize).

        forward_seconds: the model, forward. optimizer_seconds: norm, clipping and update. backward_seconds: what else the schedule took,
        but for data: the backward pass, layers that it computes again, waits for other stages, and the reduction of gradients.
        exchange_seconds: all-to-alls between ranks, which are parts of the forward and the backward pass, with the waits for them.
        """
        found = dict.fromkeys(get_args(Part), 0.0)
        for name, start, end in self._spans:
            found[name] += self._platform.seconds_between(start, end)
        backward = max(found["schedule"] - found["data"] - found["forward"], 0.0)
        parts = {"forward": found["forward"], "backward": backward, "exchange": found["exchange"], "optimizer": found["optimizer"]}
        return {f"{name}_seconds": seconds for name, seconds in parts.items()}
