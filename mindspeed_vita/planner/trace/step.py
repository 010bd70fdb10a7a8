"""Runs one training step of a recipe as one rank of any world, and returns what it took. The Stepper and all below it are the real ones.

What a trace leaves in this process (caches of torch and of ours) holds tensors without memory. Do not train in it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, Optional

from torch._subclasses.fake_tensor import FakeTensorMode

from mindspeed_vita.config import Recipe, validate
from mindspeed_vita.data.batch import PackedBatch
from mindspeed_vita.engine import optimizer as optim
from mindspeed_vita.engine.faults import FailedSamples
from mindspeed_vita.engine.objective import build_objective
from mindspeed_vita.engine.step import Stepper
from mindspeed_vita.parallel.layout import ParallelLayout
from mindspeed_vita.parallel.stages import stage_layers
from mindspeed_vita.planner.trace.packs import PackContent, make_pack
from mindspeed_vita.planner.trace.places import Places
from mindspeed_vita.planner.trace.rank import OtherRanks, TracedPlatform, fake_rank
from mindspeed_vita.planner.trace.recorder import ListsOfNumbers, Recorder
from mindspeed_vita.planner.trace.result import Trace
from mindspeed_vita.platform import Platform


def stage_ranks(recipe: Recipe, world: int) -> dict[str, int]:
    """The first rank of each kind of pipeline stage: first, middle (the one with most layers) and last; only "all" without a pipeline."""
    stages, size = recipe.parallel.pp, world // recipe.parallel.pp
    if stages == 1:
        return {"all": 0}
    layers = stage_layers(recipe)
    fullest = max(range(1, max(2, stages - 1)), key=lambda stage: sum(layers[stage::stages]))
    kinds = {"first": 0, "middle": fullest * size, "last": (stages - 1) * size}
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
        ValueError: the recipe does not fit the world, there is no such rank, or the content does not fit a pack.
    """
    content = content or PackContent()
    content.check()
    packs = _packs(recipe, world)
    if not 0 <= rank < world:
        raise ValueError(f"rank {rank} of {world} ranks; expected 0 to {world - 1}")
    recipe = shortened(recipe, world, micro_batches)
    recorder, others = Recorder(fake_mode(), Places()), _other_ranks(recipe, world)
    with fake_rank(recipe, world, rank) as layout:
        model, optimizer = _build_traced(recipe, layout, recorder, others)
        micro_batches = recipe.train.global_batch // layout.dp_size
        batches = [make_pack(recipe, layout, content) for _ in range(micro_batches)]
        with fake_mode(), recorder, ListsOfNumbers():
            recorder.caller.setup = "optimizer"
            optimizer.step()  # its state is made in the first step
            recorder.start(model.module)
            try:
                run_step(recipe, layout, TracedPlatform(recorder), model=model, optimizer=optimizer, packs=batches)
            finally:
                recorder.caller.stop()
        return Trace.of(recorder, layout=layout, micro_batches=micro_batches, packs=packs)


def shortened(recipe: Recipe, world: int, micro_batches: Optional[int]) -> Recipe:
    """The recipe with as many packs per step as are traced. Arguments and errors are those of `trace`."""
    packs = _packs(recipe, world)
    parallel = recipe.parallel
    filling = parallel.pp + 1 if parallel.virtual_stages == 1 else 2 * parallel.pp  # virtual stages take packs in groups of pp
    chosen = min(packs, filling) if micro_batches is None else micro_batches
    if chosen < 1:
        raise ValueError(f"{chosen} packs per rank; a step needs at least 1")
    dp = recipe.train.global_batch // packs
    return replace(recipe, train=replace(recipe.train, global_batch=chosen * dp, steps=max(2, recipe.train.steps)))


def build(recipe: Recipe, layout: ParallelLayout, platform: Platform, setup: Callable[[str], None] = lambda part: None) -> tuple[Any, Any]:
    """The model inside DDP and its optimizer, as engine/loop.py builds them.

    Args:
        recipe, layout, platform: of the rank.
        setup: told what comes next: weights, gradients, optimizer.
    """
    from mindspeed_vita.parallel.build import build_model

    setup("weights")
    model = build_model(recipe, layout, platform.device)
    setup("gradients")
    wrapped = optim.wrap_model(model, optim.Communication(grad_reduce=recipe.train.grad_reduce))
    setup("optimizer")
    return wrapped, optim.build_optimizer(wrapped, recipe, platform)


def run_step(
    recipe: Recipe, layout: ParallelLayout, platform: Platform, *, model: Any, optimizer: Any, packs: Sequence[PackedBatch]
) -> None:
    """One step of the Stepper on given packs, as engine/loop.py runs it."""
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
    schedule = optim.build_schedule(optimizer, recipe.train)
    stepper.run(1, lambda: schedule.step(increment=1))


def _packs(recipe: Recipe, world: int) -> int:
    """Packs of each rank in a step of the recipe."""
    validate(recipe, world)
    return recipe.train.global_batch // (world // (recipe.parallel.tp * recipe.parallel.pp * recipe.parallel.cp))


@cache
def fake_mode() -> FakeTensorMode:
    """One mode for the life of the process: caches keep tensors of it."""
    return FakeTensorMode(allow_non_fake_inputs=True)


@lru_cache(maxsize=1)
def _other_ranks(recipe: Recipe, world: int) -> OtherRanks:
    """What the pipeline stages tell each other while they are built: each kind of stage is built once for it."""
    others = OtherRanks()
    for rank in stage_ranks(recipe, world).values() if recipe.parallel.pp > 1 else ():
        with fake_rank(recipe, world, rank) as layout:
            _build_traced(recipe, layout, Recorder(fake_mode(), Places()), others)
    return others


def _build_traced(recipe: Recipe, layout: ParallelLayout, recorder: Recorder, others: OtherRanks) -> tuple[Any, Any]:
    with fake_mode(), recorder, ListsOfNumbers(), others.answering():
        return build(recipe, layout, TracedPlatform(recorder), recorder.name_setup)
