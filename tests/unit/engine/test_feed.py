"""The first rank makes the index and plans; the others wait for it and fail with its message."""

from __future__ import annotations

from dataclasses import replace
from itertools import islice
from typing import Callable

import pytest
import torch.distributed as dist

from mindspeed_vita.config import recipe_from_dict
from mindspeed_vita.engine import feed
from tests.tiny_checkpoint import alone


@pytest.fixture
def as_rank(monkeypatch) -> Callable[..., object]:
    """Runs first_rank_first as one rank of two; both share a store, and open the same data set."""
    store = dist.HashStore()
    monkeypatch.setattr(feed.dist, "get_world_size", lambda: 2)
    monkeypatch.setattr(feed.dist.distributed_c10d, "_get_default_store", lambda: store)

    def run(rank: int, work: Callable[[], object]) -> object:
        monkeypatch.setattr(feed.dist, "get_rank", lambda: rank)
        return feed.first_rank_first(work)

    return run


def test_others_work_after_the_first(as_rank):
    order: list[int] = []
    assert as_rank(0, lambda: order.append(0) or "built") == "built"
    assert as_rank(1, lambda: order.append(1) or "opened") == "opened"
    assert order == [0, 1]


def test_others_wait_for_the_first(as_rank, monkeypatch):
    from datetime import timedelta

    monkeypatch.setattr(feed, "_INDEXING", timedelta(seconds=0.2))
    with pytest.raises(dist.DistStoreError):
        as_rank(1, lambda: pytest.fail("the index is not there yet"))


@pytest.mark.parametrize("error", [ValueError("d.jsonl:2: found no JSON"), OSError("disk full")])
def test_others_fail_with_the_first_ones_message(as_rank, error):
    def fail():
        raise error

    with pytest.raises(type(error)):
        as_rank(0, fail)
    with pytest.raises(ValueError, match=str(error)):
        as_rank(1, lambda: pytest.fail("rank 0 failed"))


def test_others_do_not_wait_for_a_first_one_that_was_stopped(as_rank):
    def stop():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        as_rank(0, stop)
    with pytest.raises(ValueError, match="stopped"):
        as_rank(1, lambda: None)


def test_packs_are_dealt_by_the_work_of_the_recipes_model():
    """Pack 0 has most attention, 1 and 3 have tiles. A narrow decoder finds 0 the most expensive, a wide one 1 and 3."""

    class Packs:
        class settings:
            seq_length, resets = 1000, True

        share = None

        def cost_of(self, number):
            return ((1000, 0, 1e6), (1000, 2, 2e5), (1000, 0, 1e5), (1000, 2, 1e5))[number]

    def numbers(preset):
        recipe = recipe_from_dict({"model": {"preset": preset}, "train": {"global_batch": 4}, "data": {"seq_length": 1000}})
        loader = feed.open_loader(Packs(), recipe, replace(alone(), dp_size=2), start_pack=0)
        return list(islice(loader.numbers(), 2))

    assert numbers("tiny") == [0, 2]
    assert numbers("14b") == [0, 3]
