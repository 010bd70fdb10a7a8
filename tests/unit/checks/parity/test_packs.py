"""The packs of the parity check meet the hard spots they are made for, whatever the planner chooses."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from mindspeed_vita.checks.parity.packs import make_pack
from mindspeed_vita.data.batch import IGNORE, PackedBatch
from mindspeed_vita.sharding import index

TOKENS_PER_TILE = 4


def pack(number: int, cp_size: int, resets: bool) -> PackedBatch:
    return make_pack(number, resets, SimpleNamespace(ring_size=cp_size, node_size=0, tile_group_size=cp_size, tile_rank=0))  # type: ignore[arg-type]


def runs(batch: PackedBatch) -> list[int]:
    """The rank of each maximal stretch of chunks of one rank."""
    owners = batch.cp_plan.owners
    return owners[np.flatnonzero(np.diff(owners, prepend=-1))].tolist()


def holders(batch: PackedBatch) -> np.ndarray:
    """The rank of each token."""
    result = np.empty(batch.cp_plan.num_tokens, dtype=int)
    for rank in range(batch.cp_plan.cp_size):
        result[index(batch.cp_plan, rank)] = rank
    return result


def split_tiles(batch: PackedBatch) -> int:
    """Tiles whose rows lie on several ranks."""
    rank = holders(batch)
    return sum(len(set(rank[first : first + TOKENS_PER_TILE])) > 1 for first in batch.tile_first_token.tolist())


@pytest.mark.parametrize("resets", [True, False])
@pytest.mark.parametrize("cp_size", [2, 4])
def test_a_supervised_document_with_tiles_over_the_seams_lies_in_zigzag(cp_size: int, resets: bool) -> None:
    batch = pack(2, cp_size, resets)
    assert runs(batch) == [*range(cp_size), *range(cp_size - 2, -1, -1)]
    assert batch.cu_seqlens.tolist() == [0, 96]
    assert split_tiles(batch) == 2 * cp_size - 2, "one on every seam between ranks"
    supervised = holders(batch)[(batch.labels_T != IGNORE).numpy()]
    assert set(supervised) == set(range(cp_size)), "every rank has supervised tokens"


@pytest.mark.parametrize("number, split", [(0, True), (1, False)])
@pytest.mark.parametrize("cp_size", [2, 4])
def test_several_documents_lie_in_swapped_chunks(cp_size: int, number: int, split: bool) -> None:
    batch = pack(number, cp_size, True)
    contiguous, zigzag = [*range(cp_size)], [*range(cp_size), *range(cp_size - 2, -1, -1)]
    assert runs(batch) not in (contiguous, zigzag)
    assert bool(split_tiles(batch)) == split
    crossing = [step for rank in range(cp_size) for step in batch.cp_plan.steps(rank).ring[1:] if len(step.segments)]
    assert crossing, "no document reaches over ranks"


def test_the_last_pack_has_nothing_to_learn_and_one_tile() -> None:
    batch = pack(3, 4, True)
    assert not bool((batch.labels_T != IGNORE).any()) and len(batch.tile_first_token) == 1
    assert torch.equal(batch.positions_T, torch.arange(96))
