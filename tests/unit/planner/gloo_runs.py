"""Runs in the workers of a LayoutPool: a step over gloo with a counter at the process groups."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist

from mindspeed_vita.parallel.layout import ParallelLayout
from mindspeed_vita.parallel.ring_groups import with_ring
from mindspeed_vita.planner.proof import CONTENT, Case, proof_recipe
from mindspeed_vita.planner.trace.packs import make_pack
from mindspeed_vita.planner.trace.step import build, run_step
from mindspeed_vita.platform.cpu import CpuPlatform

_INPUT = {
    "allreduce": ("all_reduce", 0),
    "allreduce_coalesced": ("all_reduce", 0),
    "broadcast": ("broadcast", 0),
    "allgather": ("all_gather", 1),
    "_allgather_base": ("all_gather", 1),
    "all_gather_single": ("all_gather", 1),
    "allgather_coalesced": ("all_gather", 1),
    "allgather_into_tensor_coalesced": ("all_gather", 1),
    "all_gather_single_coalesced": ("all_gather", 1),
    "reduce_scatter": ("reduce_scatter", 1),
    "_reduce_scatter_base": ("reduce_scatter", 1),
    "reduce_scatter_single": ("reduce_scatter", 1),
    "reduce_scatter_tensor_coalesced": ("reduce_scatter", 1),
    "reduce_scatter_single_coalesced": ("reduce_scatter", 1),
    "alltoall": ("all_to_all", 1),
    "alltoall_base": ("all_to_all", 1),
    "all_to_all_single": ("all_to_all", 1),
    "reduce": ("reduce", 0),
    "gather": ("gather", 1),
    "scatter": ("scatter", 1),
    "send": ("send", 0),
    "recv": ("recv", 0),
    "recv_anysource": ("recv", 0),
}
"""Every method of a process group that moves tensors, the kind of collective, and which argument is the input (the output of recv)."""

Counts = Mapping[tuple[str, tuple[int, ...]], tuple[int, int]]
"""Calls and bytes by kind and the group's ranks."""


def counted_step(layout: ParallelLayout, case: Case) -> tuple[Counts, dict[str, tuple[int, ...]]]:
    """The collectives of a small step of a case, in which all ranks take part, and the ranks of each group of the layout."""
    recipe = proof_recipe(case, "small")
    platform = CpuPlatform()
    layout = with_ring(layout, recipe.parallel, dist.get_world_size(), platform.device)
    packs = [make_pack(recipe, layout, CONTENT) for _ in range(recipe.train.global_batch // layout.dp_size)]
    model, optimizer = build(recipe, layout, platform)
    optimizer.step()  # its state is made in the first step
    with _counting() as found:
        run_step(recipe, layout, platform, model=model, optimizer=optimizer, packs=packs)
    groups = {name.removesuffix("_group"): getattr(layout, name) for name in vars(layout) if name.endswith("_group")}
    ranks = {axis: tuple(dist.get_process_group_ranks(group)) for axis, group in groups.items() if group is not None}
    return found, {**ranks, "world": tuple(range(case.world))}


@contextmanager
def _counting() -> Iterator[Counts]:
    """Counts what torch.distributed asks process groups for."""
    calls: Counter[tuple[str, tuple[int, ...]]] = Counter()
    sizes: Counter[tuple[str, tuple[int, ...]]] = Counter()
    found: dict[tuple[str, tuple[int, ...]], tuple[int, int]] = {}
    real = {name: vars(dist.ProcessGroup)[name] for name in _INPUT}  # as they stand there: they bind to a group

    def counted(name: str) -> Any:
        kind, place = _INPUT[name]

        def method(group: dist.ProcessGroup, *args: Any, **kwargs: Any) -> Any:
            key = kind, tuple(dist.get_process_group_ranks(group))
            calls[key] += 1
            sizes[key] += _bytes(args[place])
            return real[name].__get__(group)(*args, **kwargs)

        return method

    for name in _INPUT:
        setattr(dist.ProcessGroup, name, counted(name))
    try:
        yield found
    finally:
        for name, method in real.items():
            setattr(dist.ProcessGroup, name, method)
    found.update({key: (calls[key], sizes[key]) for key in calls})


def _bytes(tensors: Any) -> int:
    if isinstance(tensors, torch.Tensor):
        return tensors.nbytes
    return sum(_bytes(each) for each in tensors)
