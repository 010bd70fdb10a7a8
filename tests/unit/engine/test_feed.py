"""The first rank makes the index and plans; the others wait for it and fail with its message."""

from __future__ import annotations

from typing import Callable

import pytest
import torch.distributed as dist

from mindspeed_vita.engine import feed


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
