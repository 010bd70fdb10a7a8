"""The step that a trace follows, on real tensors: what torch's allocator really holds. It is what a trace is compared with."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mindspeed_vita.config import Recipe
from mindspeed_vita.engine import optimizer as optim
from mindspeed_vita.engine.faults import FailedSamples
from mindspeed_vita.engine.objective import build_objective
from mindspeed_vita.engine.step import Stepper
from mindspeed_vita.parallel.layout import ParallelLayout
from mindspeed_vita.planner.trace.packs import PackContent, make_pack
from mindspeed_vita.platform import get_platform

_MARK = "planner: the step"


@dataclass(frozen=True)
class Measured:
    """Bytes of the CPU allocator on one rank."""

    held: int
    """When the step starts: weights, gradients, optimizer state, and what the caches keep."""
    peak: int
    """Highest during the step."""


def measure(layout: ParallelLayout, recipe: Recipe, content: PackContent) -> Measured:
    """One step, the optimizer's state already there, on a rank of real process groups. CPU only.

    Args:
        layout: this rank's.
        recipe: the run; its global batch is the step's.
        content: what fills each pack.
    """
    from mindspeed_vita.parallel.build import build_model

    platform = get_platform()
    layout = layout.with_ulysses(recipe.parallel.ulysses, platform.device)
    recipe = replace(recipe, train=replace(recipe.train, steps=max(2, recipe.train.steps)))
    packs = [make_pack(recipe, layout, content) for _ in range(recipe.train.global_batch // layout.dp_size)]
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        model = optim.wrap_model(build_model(recipe, layout, platform.device))
        optimizer = optim.build_optimizer(model, recipe, platform)
        schedule = optim.build_schedule(optimizer, recipe.train)
        optimizer.step()
        stepper = Stepper(
            recipe,
            layout,
            platform,
            model=model,
            optimizer=optimizer,
            batches=iter(packs),
            failed=FailedSamples(Path(os.devnull)),
            objective=build_objective(recipe, layout),
        )
        with torch.profiler.record_function(_MARK):
            stepper.run(1, lambda: schedule.step(increment=1))
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
