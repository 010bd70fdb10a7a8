"""Runs one training step of a recipe as one rank of any world, and returns what it took. The Stepper and all below it are the real ones.

What a trace leaves in this process (caches of torch and of ours) holds tensors without memory. Do not train in it.
"""

from __future__ import annotations

import os
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Optional

from torch._subclasses.fake_tensor import FakeTensorMode

from mindspeed_vita.config import Recipe, validate
from mindspeed_vita.engine import optimizer as optim
from mindspeed_vita.engine.faults import FailedSamples
from mindspeed_vita.engine.objective import build_objective
from mindspeed_vita.engine.step import Stepper
from mindspeed_vita.parallel.layout import ParallelLayout
from mindspeed_vita.planner.trace.packs import PackContent, make_pack
from mindspeed_vita.planner.trace.places import Places
from mindspeed_vita.planner.trace.rank import OtherRanks, TracedPlatform, fake_rank
from mindspeed_vita.planner.trace.recorder import ListsOfNumbers, Recorder
from mindspeed_vita.planner.trace.result import Trace


def stage_ranks(recipe: Recipe, world: int) -> dict[str, int]:
    """The first rank of each kind of pipeline stage: first, middle and last; only "all" without pipeline parallelism."""
    stages, size = recipe.parallel.pp, world // recipe.parallel.pp
    if stages == 1:
        return {"all": 0}
    kinds = {"first": 0, "middle": size, "last": (stages - 1) * size}
    return kinds if stages > 2 else {"first": 0, "last": size}


def trace(
    recipe: Recipe, world: int, rank: int, *, content: Optional[PackContent] = None, micro_batches: Optional[int] = None
) -> Trace:
    """One step, with the optimizer's state already there, as in every step but the first.

    Args:
        recipe: the run. Its data are not read.
        world: number of ranks.
        rank: which of them to be.
        content: what fills each pack.
        micro_batches: packs of this rank in the step. None takes as many as fill the pipeline and one more, but no more than the recipe
            has: memory does not grow after that, and work is the same for each pack.

    Raises:
        ValueError: the recipe does not fit the world, or the content does not fit a pack.
    """
    content = content or PackContent()
    content.check()
    validate(recipe, world)
    dp = world // (recipe.parallel.tp * recipe.parallel.pp * recipe.parallel.cp)
    packs = recipe.train.global_batch // dp
    chosen = min(packs, recipe.parallel.pp + 1) if micro_batches is None else micro_batches
    recipe = replace(recipe, train=replace(recipe.train, global_batch=chosen * dp, steps=max(2, recipe.train.steps)))
    recorder = Recorder(_fake_mode(), Places())
    others = OtherRanks()
    own_stage = rank // (world // recipe.parallel.pp)
    for other in stage_ranks(recipe, world).values():
        if other // (world // recipe.parallel.pp) != own_stage:
            with fake_rank(recipe, world, other) as layout:
                _build(recipe, layout, Recorder(_fake_mode(), Places()), others)
    with fake_rank(recipe, world, rank) as layout:
        places = recorder.caller
        model, optimizer = _build(recipe, layout, recorder, others)
        batches = iter([make_pack(recipe, layout, content) for _ in range(chosen)])
        schedule = optim.build_schedule(optimizer, recipe.train)
        with _fake_mode(), recorder, ListsOfNumbers():
            places.setup = "optimizer"
            optimizer.step()  # its state is made in the first step
            places.setup = ""
            recorder.start()
            platform = TracedPlatform(recorder)
            failed, objective = FailedSamples(Path(os.devnull)), build_objective(recipe, layout)
            stepper = Stepper(
                recipe, layout, platform, model=model, optimizer=optimizer, batches=batches, failed=failed, objective=objective
            )
            places.follow(model.module)
            try:
                stepper.run(1, lambda: schedule.step(increment=1))
            finally:
                places.stop()
        return Trace.of(recorder, layout=layout, micro_batches=chosen, packs=packs)


@lru_cache(maxsize=None)
def _fake_mode() -> FakeTensorMode:
    """One mode for the life of the process: caches keep tensors of it."""
    return FakeTensorMode(allow_non_fake_inputs=True)


def _build(recipe: Recipe, layout: ParallelLayout, recorder: Recorder, others: OtherRanks) -> tuple[Any, Any]:
    """The model inside DDP, and its optimizer, as engine/loop.py builds them."""
    from mindspeed_vita.parallel.build import build_model

    platform, places = TracedPlatform(recorder), recorder.caller
    with _fake_mode(), recorder, others.answering():
        places.setup = "weights"
        model = build_model(recipe, layout, platform.device)
        places.setup = "gradients"
        wrapped = optim.wrap_model(model)
        places.setup = "optimizer"
        return wrapped, optim.build_optimizer(wrapped, recipe, platform)
