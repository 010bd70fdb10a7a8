"""A plan as text: tables of memory, work and collectives, and the order of layouts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Optional

from mindspeed_vita.planner.device import device_names
from mindspeed_vita.planner.layouts import Refusal
from mindspeed_vita.planner.plan import Ranked, RankPlan
from mindspeed_vita.planner.time_report import time_table
from mindspeed_vita.planner.timing import Timing
from mindspeed_vita.planner.trace.result import Trace
from mindspeed_vita.planner.whole_step import MEMORY_ROWS, Traffic, memory_row, step_attention, step_work

_GIB, _TERA = 2**30, 10**12
_NAME, _CELL = 34, 16
_PHASES = ("forward", "recompute", "backward")
_REFUSALS = 8
"""Kinds of refusals that are printed."""


def own_layout(plans: Sequence[RankPlan], memory: int | None, device: str, timing: Optional[Timing] = None) -> str:
    """Tables of the recipe's own layout, one column for each rank.

    Args:
        plans: at least one.
        memory: bytes of a device; None if nobody said.
        device: npu or cuda.
        timing: times of a step; None if no device was named.
    """
    return "\n".join([*_memory(plans, memory, device), "", *_work(plans), "", *_collectives(plans), "", *_time(plans, timing)])


def _memory(plans: Sequence[RankPlan], memory: int | None, device: str) -> Iterator[str]:
    yield _row("memory at the peak, GiB", [f"rank {plan.rank} ({plan.kind})" for plan in plans])
    parts = [plan.trace.peak_by(memory_row) for plan in plans]
    for name in MEMORY_ROWS:
        if any(name in found for found in parts):
            yield _row(f"  {name}", [_gib(found.get(name, 0)) for found in parts])
    yield _row("  all tensors", [_gib(plan.trace.peak) for plan in plans])
    for number, extra in enumerate(plans[0].extras):
        names = {plan.extras[number].name for plan in plans}
        name = extra.name if len(names) == 1 else extra.name.partition(",")[0]
        yield _row(f"  {device} adds: {name}", [_gib(plan.extras[number].bytes) for plan in plans])
    yield _row("  together", [_gib(plan.memory) for plan in plans])
    if memory is not None:
        yield _row(f"  fits {_gib(memory)} GiB", ["yes" if plan.memory <= memory else "NO" for plan in plans])
        yield _row("  left", [_gib(memory - plan.memory) for plan in plans])
    if any(plan.trace.peak_on_host for plan in plans):
        yield _row("  in addition, host memory", [_gib(plan.trace.peak_on_host) for plan in plans])
    for plan in plans:
        yield f"  the peak of rank {plan.rank} is in {at_the_peak(plan.trace)}"
    for extra in plans[0].extras:
        yield f"  {extra.name.partition(',')[0]}: {extra.source}"


def at_the_peak(trace: Trace) -> str:
    """What runs at the peak: phase, part, and module."""
    place = trace.places[trace.owners[trace.peak_change]]
    return f"{place.phase}, {place.part}{', ' if place.module else ''}{place.module}"


def _work(plans: Sequence[RankPlan]) -> Iterator[str]:
    yield _row("work of a step, TFLOP", [f"rank {plan.rank} ({plan.kind})" for plan in plans])
    whole, attention = [step_work(plan.trace) for plan in plans], [step_attention(plan.trace) for plan in plans]
    for phase in _PHASES:
        if any(phase in work for work in whole):
            yield _row(f"  {phase}", [_tera(work.get(phase, 0)) for work in whole])
            yield _row("    of it attention", [_tera(work.get(phase, 0)) for work in attention])
    yield _row("  together", [_tera(sum(work.values())) for work in whole])


def _collectives(plans: Sequence[RankPlan]) -> Iterator[str]:
    yield _row("collectives of a step, calls and GiB", [f"rank {plan.rank} ({plan.kind})" for plan in plans])
    keys = dict.fromkeys(key for plan in plans for key in plan.collectives)
    for key in keys:
        name, group, size = key
        found = [plan.collectives.get(key, Traffic(0, 0)) for plan in plans]
        yield _row(f"  {name}, {group} ({size})", [f"{traffic.calls:,} {traffic.bytes / _GIB:10,.2f}" for traffic in found])
    yield "  bytes are those of this rank's input (of the output for recv)"


def _time(plans: Sequence[RankPlan], timing: Optional[Timing]) -> Iterator[str]:
    if timing is None:
        yield f"time: name a device, such as --device {device_names()[0]}"
        return
    yield from time_table(timing, [f"rank {plan.rank} ({plan.kind})" for plan in plans])


def ranking(ranked: Sequence[Ranked], own: Ranked, world: int, memory: int | None) -> str:
    """The order of layouts, the recipe's own among them. See plan.rank_layouts."""
    timed = own.seconds is not None
    clock = f" {'seconds':>9}" if timed else ""
    lines = [f"{'':>2} {'tensors':>9} {'together':>9} {'TFLOP':>12} {'idle':>5}{clock}  layout"]
    for number, one in enumerate(ranked, 1):
        fits = "" if memory is None else "fits: " if one.memory <= memory else "too large: "
        mark = "  (this recipe's)" if one.layout == own.layout else ""
        numbers = f"{_gib(one.peak):>9} {_gib(one.memory):>9} {_tera(one.work):>12} {one.idle:>5.0%}"
        numbers += "" if one.seconds is None else f" {one.seconds:>9,.2f}"
        lines.append(f"{number:>2} {numbers}  {fits}{one.layout.describe(world)}{mark}")
    cost = "time" if timed else "work with idle time"
    order = f"by memory, then {cost}" if memory is None else f"those that fit first, then by {cost}, then by memory"
    left = "Times are not validated" if timed else "Collectives and time are not in the order"
    lines += [
        f"   order: {order}. GiB of the fullest rank, without and with what the device adds; work of a step on the busiest rank;",
        f"   idle: the pipeline's share of waiting if stages take equally long. {left}",
    ]
    return "\n".join(lines)


def left_out(refusals: Sequence[Refusal], not_traced: int) -> str:
    """Why other layouts are not in the ranking; empty if there are none."""
    lines = [f"out: {one.count:,} like {one.example}: {one.reason}" for one in refusals[:_REFUSALS]]
    if len(refusals) > _REFUSALS:
        rest = sum(one.count for one in refusals[_REFUSALS:])
        lines.append(f"out: {rest:,} for {len(refusals) - _REFUSALS:,} other reasons")
    if not_traced:
        lines.append(f"not traced: {not_traced:,} layouts that differ more from the recipe's; --limit traces more")
    return "\n".join(lines)


def _row(name: str, cells: Sequence[str]) -> str:
    return f"{name:<{_NAME + 4}}" + "".join(f"{cell:>{_CELL + 4}}" for cell in cells)


def _gib(size: int) -> str:
    return f"{size / _GIB:,.2f}"


def _tera(work: int) -> str:
    return f"{work / _TERA:,.1f}"
