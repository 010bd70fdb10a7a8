"""What a trace found: memory over time and at its peak, work, bytes sent, and what the host read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from mindspeed_vita.parallel.layout import ParallelLayout
from mindspeed_vita.planner.trace.places import BY_HOST, Place

if TYPE_CHECKING:
    from mindspeed_vita.planner.trace.recorder import Recorder

_AXES = ("tp", "ulysses", "node", "border", "cp", "ring", "pp", "dp", "tp_cp", "dp_cp")
"""Groups of a layout. Where two have the same ranks, the first gives the name."""
_OVER_REPLICAS = ("gradients", "optimizer")
"""Parts whose collectives go over all ranks that hold the same weights: dp_cp gives the name."""


@dataclass(frozen=True, kw_only=True)
class Sent:
    """The calls of one collective in one group, from one part of the step."""

    name: str
    """all_reduce, broadcast, all_gather, reduce_scatter, all_to_all, send, or recv."""
    group: str
    """Name of the axis: tp, cp, ring, node, border, ulysses, pp, dp, tp_cp, dp_cp, world, or other."""
    group_size: int
    part: str
    """Part of the step (Place.part)."""
    calls: int
    bytes: int
    """Of this rank's input; of the output for recv."""


@dataclass(frozen=True, kw_only=True)
class Trace:
    """One step of one rank. Memory is in bytes and work in floating-point operations."""

    layout: str
    """tp, pp, cp, dp in one word."""
    micro_batches: int
    """Packs of this rank in the traced step."""
    packs: int
    """Packs of this rank in a step of the recipe."""
    places: tuple[Place, ...]
    """Who allocates."""
    changes: np.ndarray
    """int64, bytes that each allocation adds and each release takes, in order, from the first weight on."""
    owners: np.ndarray
    """int64, for each change the place (index into `places`) whose memory it is."""
    start: int
    """Index of the first change of the step; those before are weights, gradients and the optimizer's state."""
    work: dict[tuple[Place, bool], int]
    """FLOPs by place, and whether they are attention. Of the whole traced step."""
    sent: tuple[Sent, ...]
    """Collectives of the device's tensors, of the whole traced step."""
    sent_by_host: tuple[Sent, ...]
    """Collectives of the host's tensors, likewise: failed samples and whether to stop. They do not use the device's links."""
    communicators: tuple[tuple[str, int], ...]
    """Name (see Sent.group) and number of ranks of each process group that was asked for a collective."""
    reads: dict[str, int]
    """Lines at which the host reads a number from the device, and how often: there it waits."""
    peak_on_host: int = 0
    """Most bytes that the step holds in host memory at a time (train.offload)."""

    @classmethod
    def of(cls, recorder: Recorder, *, layout: ParallelLayout, micro_batches: int, packs: int) -> Trace:
        """What a recorder holds at the end of a step."""
        every = _sent(recorder, layout)
        return cls(
            layout=layout.describe(),
            micro_batches=micro_batches,
            packs=packs,
            places=tuple(recorder.places),
            changes=np.array(recorder.changes, dtype=np.int64),
            owners=np.array(recorder.owners, dtype=np.int64),
            start=recorder.started,
            work=dict(recorder.work),
            sent=tuple(sent for sent in every if sent.part != BY_HOST),
            sent_by_host=tuple(sent for sent in every if sent.part == BY_HOST),
            communicators=_communicators(recorder, layout),
            reads=dict(recorder.reads),
            peak_on_host=recorder.peak_on_host,
        )

    @property
    def live(self) -> np.ndarray:
        """Live bytes after each change, from the start of the step on: int64."""
        return np.cumsum(self.changes)[max(self.start - 1, 0) :]

    @property
    def peak(self) -> int:
        """Highest live bytes during the step."""
        return int(self.live.max())

    @property
    def held(self) -> int:
        """Live bytes when the step starts."""
        return int(self.live[0])

    @property
    def peak_change(self) -> int:
        """Index of the allocation that makes the peak."""
        return max(self.start - 1, 0) + int(self.live.argmax())

    def at_peak(self) -> dict[Place, int]:
        """Live bytes of each place at the peak."""
        stop = self.peak_change + 1
        totals = np.bincount(self.owners[:stop], weights=self.changes[:stop], minlength=len(self.places))
        return {place: int(total) for place, total in zip(self.places, totals) if total}

    def peak_by(self, key: Callable[[Place], str]) -> dict[str, int]:
        """Live bytes at the peak, summed by a property of the place; the largest first."""
        return _largest_first(self.at_peak(), key)

    def flops(self, key: Callable[[Place], str] = lambda place: place.phase) -> dict[str, int]:
        """Work of the traced step, summed by a property of the place; the largest first."""
        found: Counter[Place] = Counter()
        for (place, _), count in self.work.items():
            found[place] += count
        return _largest_first(found, key)

    def attention_flops(self) -> dict[str, int]:
        """The part of `flops()` that is attention, by phase."""
        amounts = {place: count for (place, attention), count in self.work.items() if attention}
        return _largest_first(amounts, lambda place: place.phase)


def _largest_first(amounts: dict[Place, int], key: Callable[[Place], str]) -> dict[str, int]:
    sums: Counter[str] = Counter()
    for place, amount in amounts.items():
        sums[key(place)] += amount
    return dict(sums.most_common())


def _axes(layout: ParallelLayout) -> dict[tuple[int, ...], list[str]]:
    """Names of the layout's groups by their ranks."""
    import torch.distributed as dist

    axes: dict[tuple[int, ...], list[str]] = {}
    for axis in _AXES:
        group = getattr(layout, f"{axis}_group")
        if group is not None:
            axes.setdefault(tuple(dist.get_process_group_ranks(group)), []).append(axis)
    axes.setdefault(tuple(range(dist.get_world_size())), []).append("world")
    return axes


def _communicators(recorder: Recorder, layout: ParallelLayout) -> tuple[tuple[str, int], ...]:
    axes = _axes(layout)
    return tuple((axes.get(ranks, ["other"])[0], len(ranks)) for ranks in recorder.communicators.values())


def _sent(recorder: Recorder, layout: ParallelLayout) -> tuple[Sent, ...]:
    axes = _axes(layout)

    def name(ranks: tuple[int, ...], part: str) -> str:
        names = axes.get(ranks, ["other"])
        return "dp_cp" if part in _OVER_REPLICAS and "dp_cp" in names else names[0]

    return tuple(
        Sent(
            name=key.name,
            group=name(key.ranks, part),
            group_size=len(key.ranks),
            part=part,
            calls=recorder.calls[key, part],
            bytes=size,
        )
        for (key, part), size in sorted(recorder.sent.items(), key=lambda item: -item[1])
    )
