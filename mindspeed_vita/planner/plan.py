"""The plan of a recipe on a number of devices: its own layout in full, and other layouts by memory, and by time or work."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Optional

from mindspeed_vita.config import Recipe, validate
from mindspeed_vita.planner.children import Job, trace_all
from mindspeed_vita.planner.device import Device
from mindspeed_vita.planner.device_memory import Extra, extras
from mindspeed_vita.planner.layouts import Layout
from mindspeed_vita.planner.timing import time_layout
from mindspeed_vita.planner.trace.packs import PackContent
from mindspeed_vita.planner.trace.result import Trace
from mindspeed_vita.planner.trace.step import stage_ranks
from mindspeed_vita.planner.whole_step import Collectives, more_packs_needed, step_collectives, step_work

Progress = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class RankPlan:
    """One rank of each kind of pipeline stage."""

    kind: str
    """first, middle, last; all without pipeline parallelism."""
    rank: int
    trace: Trace
    collectives: Collectives
    """Of a whole step."""
    extras: tuple[Extra, ...]
    """Memory that the device adds."""

    @property
    def memory(self) -> int:
        """Bytes with what the device adds."""
        return self.trace.peak + sum(extra.bytes for extra in self.extras)


@dataclass(frozen=True, kw_only=True)
class Ranked:
    """A layout among others."""

    layout: Layout
    peak: int
    """Bytes of tensors of its fullest rank."""
    memory: int
    """The same with what the device adds."""
    work: int
    """FLOPs of a step on its busiest rank."""
    idle: float
    """Share of a step in which a rank waits for the pipeline to fill and to drain, if all stages take equally long."""
    seconds: Optional[float] = None
    """Of a step, by the time model; None: no device was named."""

    @property
    def work_and_idle(self) -> float:
        """Work divided by the share of the step in which a rank works."""
        return self.work / (1 - self.idle)

    @property
    def cost(self) -> float:
        """What layouts are ordered by: time, or work where no device was named. All layouts of a plan have the same."""
        return self.work_and_idle if self.seconds is None else self.seconds


def plan_own(
    recipe: Recipe, world: int, *, device: str, processes: int, say: Progress, content: Optional[PackContent] = None
) -> list[RankPlan]:
    """The recipe's own layout: one rank of each kind of stage.

    Args:
        recipe: the run.
        world: number of devices.
        device: npu or cuda; see device_memory.extras.
        processes: traces that run at a time.
        say: told of progress.
        content: what fills the packs; None: PackContent().

    Raises:
        ValueError: the recipe does not fit the world.
    """
    packs = packs_of_a_rank(recipe, world)
    longest = min(packs, recipe.parallel.pp + 1)
    numbers = (longest, *more_packs_needed(packs, longest))
    ranks = stage_ranks(recipe, world)
    jobs = [
        Job(recipe=recipe, world=world, rank=rank, micro_batches=number, content=content) for rank in ranks.values() for number in numbers
    ]
    found = _traced(jobs, processes, say, world)
    plans = []
    for start, (kind, rank) in zip(range(0, len(jobs), len(numbers)), ranks.items()):
        by_packs = dict(zip(numbers, found[start:]))
        trace = by_packs[longest]
        collectives = step_collectives(by_packs)
        plans.append(RankPlan(kind=kind, rank=rank, trace=trace, collectives=collectives, extras=tuple(extras(device, trace))))
    return plans


def rank_layouts(
    recipe: Recipe,
    world: int,
    layouts: Sequence[Layout],
    *,
    device: str,
    memory: int | None,
    processes: int,
    say: Progress,
    constants: Optional[Device] = None,
    scale: Optional[Mapping[str, float]] = None,
) -> list[Ranked]:
    """Traces layouts and orders them: those that fit first, then by time, then by memory.

    Without a device's constants, work and the pipeline's idle share stand for time.

    Args:
        recipe: the run.
        world: number of devices.
        layouts: what to try; the recipe's checks must accept them.
        device, processes, say: as for `plan_own`.
        memory: bytes of a device. None: nothing is known to fit, and memory comes before time.
        constants: of the device.
        scale: of the time model; see calibration.factors.
    """
    jobs: list[Job] = []
    counts = []
    for layout in layouts:
        changed = layout.applied(recipe)
        ranks = stage_ranks(changed, world).values()
        jobs += [Job(recipe=changed, world=world, rank=rank) for rank in ranks]
        counts.append(len(ranks))
    found = iter(_traced(jobs, processes, say, world))
    ranked = []
    for layout, count in zip(layouts, counts):
        traces = [next(found) for _ in range(count)]
        one = ranked_layout(layout, traces, device)
        if constants is not None:
            one = replace(one, seconds=time_layout(layout.applied(recipe), world, traces, constants, scale=scale).seconds)
        ranked.append(one)
    return in_order(ranked, memory)


def ranked_layout(layout: Layout, traces: Sequence[Trace], device: str) -> Ranked:
    """A layout's numbers, from the traces of its stages."""
    packs = traces[0].packs
    return Ranked(
        layout=layout,
        peak=max(trace.peak for trace in traces),
        memory=max(trace.peak + sum(extra.bytes for extra in extras(device, trace)) for trace in traces),
        work=max(sum(step_work(trace).values()) for trace in traces),
        idle=(layout.pp - 1) / (packs + layout.pp - 1),
    )


def in_order(ranked: Sequence[Ranked], memory: int | None) -> list[Ranked]:
    """The order of `rank_layouts`."""
    if memory is None:
        return sorted(ranked, key=lambda one: (one.memory, one.cost))
    return sorted(ranked, key=lambda one: (one.memory > memory, one.cost, one.memory))


def packs_of_a_rank(recipe: Recipe, world: int) -> int:
    """Packs of each data-parallel rank in a step.

    Raises:
        ValueError: the recipe does not fit the world.
    """
    validate(recipe, world)
    layout = recipe.parallel
    return recipe.train.global_batch // (world // (layout.tp * layout.pp * layout.cp))


def _traced(jobs: Sequence[Job], processes: int, say: Progress, world: int) -> list[Trace]:
    finished: list[int] = []

    def done(number: int) -> None:
        finished.append(number)
        job = jobs[number]
        say(f"traced {len(finished)} of {len(jobs)}: {Layout.of(job.recipe).describe(world)}; rank {job.rank}")

    return trace_all(jobs, processes, done)
