"""What a whole step of a recipe costs on one rank, from traces of fewer packs. Layers are never left out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from mindspeed_vita.planner.trace.places import LAYERS, Place
from mindspeed_vita.planner.trace.result import Trace

SAVED, AT_WORK = "saved activations", "layers at work"
MEMORY_ROWS = (
    "weights",
    "gradients",
    "optimizer",
    SAVED,
    AT_WORK,
    "attention",
    "tower",
    "ring",
    "exchange",
    "head",
    "pipeline",
    "inputs",
)
"""Parts of memory, from what stays to what comes and goes."""


def memory_row(place: Place) -> str:
    """The part of memory that a place belongs to.

    What the decoder's layers allocate in the forward pass is "saved activations": the backward pass needs it. While the forward pass runs,
    that includes what the running layer gives back. What they allocate in the backward pass or when they recompute is "layers at work".
    """
    if place.part != LAYERS:
        return place.part
    return SAVED if place.phase == "forward" else AT_WORK


@dataclass(frozen=True)
class Traffic:
    """One collective in one group, over a step."""

    calls: int
    bytes: int
    """Of this rank's input; of the output for recv."""


Collectives = Mapping[tuple[str, str, int], Traffic]
"""By name, group, and number of ranks of the group."""


def step_work(trace: Trace) -> dict[str, int]:
    """FLOPs of a whole step, by phase. Only packs have work, and each has the same."""
    return {phase: _whole(work, trace) for phase, work in trace.flops().items()}


def step_attention(trace: Trace) -> dict[str, int]:
    """The part of `step_work` that is attention."""
    return {phase: _whole(work, trace) for phase, work in trace.attention_flops().items()}


def _whole(work: int, trace: Trace) -> int:
    assert work * trace.packs % trace.micro_batches == 0, "packs have the same work"
    return work * trace.packs // trace.micro_batches


def more_packs_needed(packs: int, traced: int) -> tuple[int, ...]:
    """Numbers of packs to trace in addition, for `step_collectives`.

    Args:
        packs: of a rank in a step of the recipe.
        traced: of the trace that is there.
    """
    return () if packs == traced else tuple(number for number in (1, 2) if number != traced)


def step_collectives(traces: Mapping[int, Trace]) -> Collectives:
    """Calls and bytes of a whole step.

    Some collectives belong to a pack and some to a step. The difference between two packs and one is what a pack adds.

    Args:
        traces: of one rank, by number of packs: the longest, and those of `more_packs_needed`.
    """
    longest = traces[max(traces)]
    totals = _by_group(longest)
    missing = longest.packs - longest.micro_batches
    if missing:
        one, two = _by_group(traces[1]), _by_group(traces[2])
        nothing = Traffic(0, 0)
        for key in two:
            first, second, whole = one.get(key, nothing), two[key], totals.get(key, nothing)
            calls = whole.calls + missing * (second.calls - first.calls)
            totals[key] = Traffic(calls, whole.bytes + missing * (second.bytes - first.bytes))
    return dict(sorted(totals.items(), key=lambda item: -item[1].bytes))


def _by_group(trace: Trace) -> dict[tuple[str, str, int], Traffic]:
    calls: Counter[tuple[str, str, int]] = Counter()
    sizes: Counter[tuple[str, str, int]] = Counter()
    for sent in trace.sent:
        if sent.group_size > 1:
            key = (sent.name, sent.group, sent.group_size)
            calls[key] += sent.calls
            sizes[key] += sent.bytes
    return {key: Traffic(calls[key], sizes[key]) for key in calls}
