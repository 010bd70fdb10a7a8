"""What attention asks for of one rank's plan on a device: made on the host before the model runs, to be copied there with other tensors.

Without this, the first layer asks for each piece by itself, and the host waits for each copy (blocks.kept).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from mindspeed_vita.ops.attention.blocks import PackedSegments, keep, make_packed, make_rows
from mindspeed_vita.sharding.ring_steps import RankSteps

_HOST = torch.device("cpu")
_ON_DEVICE = ("query_rows", "key_rows", "cu_query", "cu_key")
"""Fields of PackedSegments that may be tensors."""


@dataclass(frozen=True)
class Ahead:
    """Pieces of a plan.

    Attributes:
        pieces: (array of the plan, name of what is kept for it, that on the host).
    """

    pieces: tuple[tuple[np.ndarray, str, Any], ...]

    @classmethod
    def of(cls, steps: RankSteps) -> Ahead:
        """All that ring attention and its kernels keep for one rank's steps."""
        return cls(tuple(_pieces(steps)))

    def tensors(self) -> list[torch.Tensor]:
        """What is to be copied."""
        found: list[torch.Tensor] = []
        for _, _, value in self.pieces:
            _map(found.append, value)
        return found

    def keep(self, device: torch.device, moved: Sequence[torch.Tensor]) -> None:
        """Lets attention find the copies for as long as the plan lives.

        Args:
            device: where they are.
            moved: the copies, in the order of `tensors`.
        """
        copies = iter(moved)
        for array, name, value in self.pieces:
            keep(array, device, name, _map(lambda _: next(copies), value))


def _pieces(steps: RankSteps) -> Iterator[tuple[np.ndarray, str, Any]]:
    yield steps.diagonal_segments, "packed", make_packed(steps.diagonal_segments, _HOST)
    for later in steps.rounds[1:]:
        yield later.send, "tensor", torch.from_numpy(later.send)
    for step in steps.ring:
        yield step.send, "tensor", torch.from_numpy(step.send)
        if len(step.segments):
            yield step.segments, "packed", make_packed(step.segments, _HOST)
            yield step.segments, "rows", make_rows(step.segments, _HOST)


def _map(change: Callable[[torch.Tensor], Any], value: Any) -> Any:
    """The value with every tensor in it changed."""
    if isinstance(value, torch.Tensor):
        return change(value)
    if isinstance(value, tuple):
        return tuple(_map(change, part) for part in value)
    if isinstance(value, PackedSegments):
        return replace(value, **{name: _map(change, getattr(value, name)) for name in _ON_DEVICE})
    return value  # rows that are one stretch
