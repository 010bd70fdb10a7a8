"""One rank of a cluster that is not there: torch's fake process group, and a CPU whose tensors have no memory."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
import torch.distributed as dist

from mindspeed_vita.config import Recipe
from mindspeed_vita.engine import session
from mindspeed_vita.parallel.layout import ParallelLayout
from mindspeed_vita.planner.trace.recorder import Recorder
from mindspeed_vita.platform.cpu import CpuPlatform


class TracedPlatform(CpuPlatform):
    """A CPU whose device tensors have no memory, while its host tensors are real."""

    def __init__(self, recorder: Recorder) -> None:
        super().__init__()
        self._recorder = recorder

    def host_work(self) -> AbstractContextManager[None]:
        return self._recorder.host_work()

    def to_device(self, values: torch.Tensor) -> torch.Tensor:
        return self._recorder.to_device(values)


@contextmanager
def fake_rank(recipe: Recipe, world: int, rank: int) -> Iterator[ParallelLayout]:
    """This process as one rank of a world whose other ranks do not exist. Collectives return at once.

    Args:
        recipe: its layout makes the groups. No launcher says which ranks share a node; parallel.cp_per_node may.
        world: number of ranks.
        rank: which of them.

    Raises:
        ValueError: the recipe does not fit the world.
    """
    from torch.testing._internal.distributed.fake_pg import FakeStore

    assert not dist.is_initialized(), "a trace needs a process without process groups"
    names = {"RANK": str(rank), "WORLD_SIZE": str(world), "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": str(world)}
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(names)
    dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=world)
    try:
        yield session.init_distributed(recipe, CpuPlatform())
    finally:
        session.shutdown()
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


class OtherRanks:
    """What ranks put into collectives of Python objects, which the fake process group cannot know.

    Each rank that stands here adds what it puts in. It is answered with that, and with what ranks before it put in.
    """

    def __init__(self) -> None:
        self._said: list[Any] = []

    @contextmanager
    def answering(self) -> Iterator[None]:
        """Answers torch.distributed.all_gather_object for a while."""
        real = dist.all_gather_object

        def gathered(found: list[Any], own: Any, group: Any = None) -> None:
            del group
            if own not in self._said:
                self._said.append(own)
            others = self._said[: len(found)]
            found[:] = [*others, *[own] * (len(found) - len(others))]

        dist.all_gather_object = gathered  # type: ignore[assignment]
        try:
            yield
        finally:
            dist.all_gather_object = real
