"""Packing plans on disk: one folder an epoch, mapped when opened, so that any step of any plan is found at once."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mindspeed_vita.data.columns import map_array
from mindspeed_vita.data.packing import Packing
from mindspeed_vita.files.publish import whole_folder

_TYPES = {"draws": "<u4", "pack_cu": "<i8", "tokens": "<i4", "tiles": "<i4", "squares": "<f8"}
_META = "plan.json"
_BLOCK = 1 << 22
"""Draws that are written at a time."""


@dataclass(frozen=True)
class EpochPlan:
    """The packs of one epoch and what each costs."""

    packs: Packing
    tokens: np.ndarray
    """int32[P], tokens of each pack, padding left out."""
    tiles: np.ndarray
    """int32[P]."""
    squares: np.ndarray
    """float64[P], sum of squared sample lengths: attention work where samples are isolated."""


def measure_packs(packs: Packing, lengths: np.ndarray, tiles: np.ndarray) -> EpochPlan:
    """What each pack costs.

    Args:
        packs: the plan.
        lengths: int[E], tokens of each drawn sample.
        tiles: int[E], tiles of each drawn sample.
    """
    totals = [np.zeros(len(packs), dtype=kind) for kind in (np.int32, np.int32, np.float64)]
    step = max(1, _BLOCK * len(packs) // max(1, len(packs.draws)))
    for first in range(0, len(packs), step):
        bounds = packs.pack_cu[first : first + step + 1]
        drawn = packs.draws[bounds[0] : bounds[-1]]
        here, starts = lengths[drawn].astype(np.float64), bounds[:-1] - bounds[0]
        for total, values in zip(totals, (here, tiles[drawn], here * here)):
            total[first : first + step] = np.add.reduceat(values, starts)
    return EpochPlan(packs, *totals)


def write_plan(folder: Path, plan: EpochPlan) -> None:
    """Writes one epoch; it appears only when it is whole."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    arrays = {"draws": plan.packs.draws, "pack_cu": plan.packs.pack_cu, "tokens": plan.tokens, "tiles": plan.tiles, "squares": plan.squares}
    with whole_folder(folder, known_by=_META) as temporary:
        temporary.mkdir()
        for name, values in arrays.items():
            with open(temporary / name, "wb") as file:
                for first in range(0, len(values), _BLOCK):
                    file.write(values[first : first + _BLOCK].astype(_TYPES[name]).tobytes())
        (temporary / _META).write_text(json.dumps({name: [len(values)] for name, values in arrays.items()}))


def open_plan(folder: Path) -> EpochPlan | None:
    """Maps one epoch, or returns None where it was not written."""
    try:
        shapes = json.loads((folder / _META).read_text())
    except OSError:
        return None
    arrays = {name: map_array(folder / name, _TYPES[name], shapes[name]) for name in _TYPES}
    return EpochPlan(Packing(arrays["draws"], arrays["pack_cu"]), arrays["tokens"], arrays["tiles"], arrays["squares"])
