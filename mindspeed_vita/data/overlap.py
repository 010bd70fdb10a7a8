"""Rows that two data sets have in common: held-out packs that hold rows of the training data measure memory, not learning."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from mindspeed_vita.data.dataset import PackDataset

_BLOCK = 1 << 22
"""Rows of the larger data set that are compared at a time."""


@dataclass(frozen=True, kw_only=True)
class Overlap:
    """What held-out packs have in common with the training data."""

    rows: int
    """Distinct rows of the held-out packs."""
    shared: int
    """Those of them that the training data has too."""
    example: str
    """File and line of the first one; empty where there is none."""


def find_overlap(held_out: PackDataset, packs: Iterable[int], training: PackDataset) -> Overlap:
    """Compares rows by the digests of their text, which the index keeps. Media are not compared: a picture may be in both.

    Args:
        held_out: the held-out data.
        packs: numbers of the packs that are evaluated.
        training: the data that is trained on.
    """
    ids = np.unique(np.concatenate([held_out.samples_of(number) for number in packs]))
    theirs, ours = training.index.digests, held_out.index.digests
    if not len(theirs) or not len(ours):  # columns of an older version have none
        return Overlap(rows=len(ids), shared=0, example="")
    wanted = np.asarray(ours[ids])
    found = [block[np.isin(block, wanted)] for start in range(0, len(theirs), _BLOCK) if len(block := theirs[start : start + _BLOCK])]
    shared = ids[np.isin(wanted, np.concatenate(found))]
    return Overlap(rows=len(ids), shared=len(shared), example=held_out.where(int(shared[0])) if len(shared) else "")
