"""The packing plan of one epoch: which samples share a pack, in which order. It follows from index, seed and epoch alone."""

from __future__ import annotations

from bisect import bisect_left, insort
from dataclasses import dataclass
from typing import Any

import numpy as np

from mindspeed_vita.choices import PACKINGS

LOOKAHEAD = 4096
"""Shuffled samples that are placed together, longest first."""
OPEN_PACKS = 64
"""Unfinished packs kept open for the next samples."""

_SHUFFLE_SAMPLES, _SHUFFLE_PACKS, _SHUFFLE_WITHIN = 0, 1, 2


@dataclass(frozen=True)
class Packing:
    """P packs over E drawn samples."""

    draws: np.ndarray
    """int64[E], places in the list of drawn samples, pack by pack."""
    pack_cu: np.ndarray
    """int64[P + 1], bounds of the packs in draws."""

    def __len__(self) -> int:
        return len(self.pack_cu) - 1

    def pack(self, number: int) -> np.ndarray:
        """Drawn samples of one pack, in their order: int64."""
        return self.draws[self.pack_cu[number] : self.pack_cu[number + 1]]


def plan_packs(
    lengths: np.ndarray,
    source_ids: np.ndarray,
    *,
    capacity: int,
    mode: str,
    seed: int,
    epoch: int,
    lookahead: int = LOOKAHEAD,
    open_packs: int = OPEN_PACKS,
) -> Packing:
    """Packs every drawn sample exactly once.

    Samples are shuffled, taken a lookahead at a time, and placed longest first into the fullest open pack that has room
    (best fit). In the end the packs are shuffled, and the samples within each: best fit alone would leave short samples at one
    end, which matters where samples attend to those before them.

    Args:
        lengths: int[E], tokens of each drawn sample, 1 to capacity.
        source_ids: int[E], source of each drawn sample.
        capacity: tokens of a pack.
        mode: same_source (no pack mixes sources) or cross_source.
        seed: of the plan.
        epoch: counted from 0; each has its own shuffle.
        lookahead: samples placed together.
        open_packs: unfinished packs carried on.

    Raises:
        ValueError: no samples, or the mode is unknown.
    """
    if mode not in PACKINGS:
        raise ValueError(f"data.packing={mode!r} is unknown; expected one of {', '.join(PACKINGS)}")
    if not len(lengths):
        raise ValueError("found no samples to pack; expected at least one")
    assert lengths.min() > 0 and lengths.max() <= capacity, "samples are fitted to the pack when they are indexed"
    order = np.random.default_rng([seed, epoch, _SHUFFLE_SAMPLES]).permutation(len(lengths))
    groups: list[np.ndarray] = [order]
    if mode == "same_source":
        groups = [order[source_ids[order] == source] for source in np.unique(source_ids)]
    pack_of: np.ndarray = np.empty(len(lengths), dtype=np.int64)
    num_packs = 0
    for group in groups:
        places, count = _best_fit(lengths[group], capacity, lookahead, open_packs)
        pack_of[group] = places + num_packs
        num_packs += count
    new_number = np.random.default_rng([seed, epoch, _SHUFFLE_PACKS]).permutation(num_packs)
    pack_of = new_number[pack_of]
    within = np.random.default_rng([seed, epoch, _SHUFFLE_WITHIN]).permutation(len(lengths))
    draws = np.lexsort((within, pack_of))
    pack_cu = np.concatenate([[0], np.cumsum(np.bincount(pack_of, minlength=num_packs))])
    return Packing(draws.astype(np.int64), pack_cu.astype(np.int64))


def plan_grouped_packs(lengths: np.ndarray, source_ids: np.ndarray, groups: np.ndarray, **settings: Any) -> Packing:
    """Packs every drawn sample exactly once, and those of a group side by side in one pack, in their order.

    Args:
        lengths: int[E], tokens of each drawn sample. Those of a group add up to at most the capacity.
        source_ids: int[E], source of each drawn sample, the same in a group.
        groups: int[E], group of each drawn sample, ascending.
        settings: the remaining arguments of plan_packs.

    Raises:
        ValueError: as plan_packs.
    """
    starts = np.flatnonzero(np.diff(groups, prepend=-1))
    counts = np.diff(starts, append=len(groups))
    plan = plan_packs(np.add.reduceat(lengths, starts, dtype=np.int64), source_ids[starts], **settings)
    ends = np.concatenate([[0], np.cumsum(counts[plan.draws])])
    shifts = np.repeat(starts[plan.draws] - ends[:-1], counts[plan.draws])
    return Packing(np.arange(len(groups)) + shifts, ends[plan.pack_cu])


def _best_fit(lengths: np.ndarray, capacity: int, lookahead: int, open_packs: int) -> tuple[np.ndarray, int]:
    """(pack of each sample: int64, number of packs). The open packs are a list of (room, pack), least room first."""
    pack_of = np.empty(len(lengths), dtype=np.int64)
    rooms: list[tuple[int, int]] = []
    num_packs = 0
    for start in range(0, len(lengths), lookahead):
        window = lengths[start : start + lookahead]
        for place in np.argsort(-window, kind="stable").tolist():
            length = int(window[place])
            found = bisect_left(rooms, (length, -1))
            if found < len(rooms):
                room, pack = rooms.pop(found)
            else:
                room, pack = capacity, num_packs
                num_packs += 1
            pack_of[start + place] = pack
            if room > length:
                insort(rooms, (room - length, pack))
        rooms = rooms[-open_packs:] if open_packs else []
    return pack_of, num_packs
