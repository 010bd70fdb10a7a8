"""The step that a trace follows, on real tensors: what torch's allocator really holds. It is what a trace is compared with."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Optional

import numpy as np
import torch

from mindspeed_vita.config import Recipe
from mindspeed_vita.engine.faults import TrainingDiverged
from mindspeed_vita.parallel.layout import ParallelLayout
from mindspeed_vita.planner.trace.packs import PackContent, make_pack
from mindspeed_vita.planner.trace.rank import fake_rank
from mindspeed_vita.planner.trace.step import build, run_step, shortened
from mindspeed_vita.platform.cpu import CpuPlatform

_MARK = "planner: the step"


@dataclass(frozen=True)
class Measured:
    """Bytes of the CPU allocator on one rank."""

    held: int
    """When the step starts: weights, gradients, optimizer state, and what the caches keep."""
    peak: int
    """Highest during the step."""


def measure(recipe: Recipe, world: int, rank: int, *, content: PackContent, micro_batches: Optional[int] = None) -> Measured:
    """One step of one rank, the optimizer's state already there, on a CPU.

    The other ranks do not exist: collectives return at once and leave what was there, so the numbers mean nothing. Their memory does.

    Args:
        recipe, world, rank, content, micro_batches: as for trace.step.trace.

    Raises:
        ValueError: as trace.step.trace.
    """
    recipe = shortened(recipe, world, micro_batches)
    with fake_rank(recipe, world, rank) as layout:
        return measure_here(recipe, layout, content)


def measure_here(recipe: Recipe, layout: ParallelLayout, content: PackContent) -> Measured:
    """One step on a rank of the running process groups.

    Gloo's own buffers count as well, and its threads release what they sent at a moment of their own: peaks differ from run to run.
    """
    platform = CpuPlatform()
    packs = [make_pack(recipe, layout, content) for _ in range(recipe.train.global_batch // layout.dp_size)]
    profiling = torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True)
    # oneDNN's kernels for AMX, of some CPUs only, hold buffers of their own: 60 to 100 MB in the steps of the tests
    with torch.backends.mkldnn.flags(enabled=False), profiling as profile:
        model, optimizer = build(recipe, layout, platform)
        optimizer.step()
        with torch.profiler.record_function(_MARK), suppress(TrainingDiverged):
            run_step(recipe, layout, platform, model=model, optimizer=optimizer, packs=packs)
    return _read(profile.profiler)


def _read(profiler: Any) -> Measured:
    events = profiler.kineto_results.events()
    start = next(event.start_ns() for event in events if event.name() == _MARK)
    stop = next(event.end_ns() for event in events if event.name() == _MARK)
    changes = sorted((event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]")
    times, sizes = np.array([time for time, _ in changes]), np.array([size for _, size in changes])
    live = np.cumsum(sizes)
    inside = (times >= start) & (times <= stop)
    return Measured(held=int(live[times < start][-1]), peak=int(live[inside].max()))
