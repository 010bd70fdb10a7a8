"""A plan as JSON values. Bytes, FLOPs and seconds without prefixes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, Optional

from mindspeed_vita.planner.plan import Ranked, RankPlan
from mindspeed_vita.planner.time_report import STATUS
from mindspeed_vita.planner.timing import Timing
from mindspeed_vita.planner.whole_step import memory_row, step_work


def own_json(title: str, plans: Sequence[RankPlan], memory: int | None, timing: Optional[Timing]) -> dict[str, Any]:
    """The recipe's own layout. Arguments are those of report.own_layout."""
    found: dict[str, Any] = {"plan": title, "ranks": [_rank(plan, memory) for plan in plans]}
    if timing is not None:
        found["time"] = {
            "device": asdict(timing.device),
            "status": STATUS[timing.device.kind],
            "ranks": [time.parts() for time in timing.ranks],
            "modelled": _run(timing, timing.modelled),
        }
        if timing.scale is not None:
            found["time"]["factors"] = dict(timing.scale)
            found["time"]["calibrated"] = _run(timing, timing.seconds)
    return found


def ranked_json(one: Ranked, memory: int | None) -> dict[str, Any]:
    """One layout of the ranking."""
    fits = None if memory is None else one.memory <= memory
    return {**asdict(one), "fits": fits}


def _rank(plan: RankPlan, memory: int | None) -> dict[str, Any]:
    return {
        "rank": plan.rank,
        "kind": plan.kind,
        "tensors": plan.trace.peak,
        "by_part": plan.trace.peak_by(memory_row),
        "device_adds": [asdict(extra) for extra in plan.extras],
        "memory": plan.memory,
        "fits": None if memory is None else plan.memory <= memory,
        "work": step_work(plan.trace),
        "collectives": [
            {"name": name, "group": group, "ranks": size, **asdict(traffic)} for (name, group, size), traffic in plan.collectives.items()
        ],
    }


def _run(timing: Timing, seconds: float) -> dict[str, float]:
    return {
        "step": seconds,
        "tokens_per_second_and_device": timing.speed(seconds),
        "mfu": timing.utilisation(seconds),
        "run": timing.steps * seconds,
    }
