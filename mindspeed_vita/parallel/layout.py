"""Where this process stands on every parallel axis: sizes, ranks and groups as one value that is passed on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

TIMEOUT = timedelta(minutes=30)
"""How long a collective of a built-in run may wait for other ranks, in every process group."""


@dataclass(frozen=True, kw_only=True)
class ParallelLayout:
    """Sizes, ranks and process groups of tensor, pipeline, context and data parallelism.

    The tp x cp group shares out tiles; its ranks are ordered cp_rank * tp_size + tp_rank.
    """

    tp_size: int
    tp_rank: int
    pp_size: int
    pp_rank: int
    cp_size: int
    cp_rank: int
    dp_size: int
    dp_rank: int
    tp_group: Any
    pp_group: Any
    cp_group: Any
    dp_group: Any
    dp_cp_group: Any
    tp_cp_group: Any
    ulysses_size: int = 1
    """Neighbouring context-parallel ranks that make up one ring rank."""
    ulysses_group: Any = None
    ring_group: Any = None
    """The ranks that a ring goes through; with ulysses_size 1 the context-parallel group."""
    node_size: int = 0
    """Neighbouring ring ranks that share a node. 0: keys go to each rank directly, as where a node holds one ring rank or all."""
    node_group: Any = None
    """The ring ranks of this rank's node; None with node_size 0."""
    border_group: Any = None
    """The ring ranks with this rank's node rank, one per node; None with node_size 0."""
    second_groups: tuple[Any, ...] = ()
    """Empty, or once more the groups that keys travel in: the ring's, or those of the node and of the border."""

    @property
    def is_first_stage(self) -> bool:
        """Whether this is the first pipeline stage."""
        return self.pp_rank == 0

    @property
    def is_last_stage(self) -> bool:
        """Whether this is the last pipeline stage."""
        return self.pp_rank == self.pp_size - 1

    @property
    def ring_size(self) -> int:
        """Number of ring ranks: cp_size / ulysses_size."""
        return self.cp_size // self.ulysses_size

    @property
    def ring_rank(self) -> int:
        """This process's rank on the ring: cp_rank // ulysses_size."""
        return self.cp_rank // self.ulysses_size

    @property
    def tile_rank(self) -> int:
        """Rank in the tp x cp group."""
        return self.cp_rank * self.tp_size + self.tp_rank

    @property
    def tile_group_size(self) -> int:
        """Ranks that share out the tiles of a pack."""
        return self.cp_size * self.tp_size

    def describe(self) -> str:
        """The layout in one word for tables: tp1 pp1 cp1 dp2."""
        ulysses = f" (ulysses {self.ulysses_size})" if self.ulysses_size > 1 else ""
        nodes = f" (nodes of {self.node_size})" if self.node_size else ""
        return f"tp{self.tp_size} pp{self.pp_size} cp{self.cp_size}{ulysses}{nodes} dp{self.dp_size}"

    @classmethod
    def from_megatron(cls, device: torch.device) -> ParallelLayout:
        """Reads megatron's parallel state, which must be initialised, and opens the groups' channels on a device. Collective."""
        from megatron.core import parallel_state as state

        layout = cls(
            tp_size=state.get_tensor_model_parallel_world_size(),
            tp_rank=state.get_tensor_model_parallel_rank(),
            pp_size=state.get_pipeline_model_parallel_world_size(),
            pp_rank=state.get_pipeline_model_parallel_rank(),
            cp_size=state.get_context_parallel_world_size(),
            cp_rank=state.get_context_parallel_rank(),
            dp_size=state.get_data_parallel_world_size(),
            dp_rank=state.get_data_parallel_rank(),
            tp_group=state.get_tensor_model_parallel_group(),
            pp_group=state.get_pipeline_model_parallel_group(),
            cp_group=state.get_context_parallel_group(),
            dp_group=state.get_data_parallel_group(),
            dp_cp_group=state.get_data_parallel_group(with_context_parallel=True),
            tp_cp_group=state.get_tensor_and_context_parallel_group(),
            ring_group=state.get_context_parallel_group(),
        )
        assert dist.get_rank(layout.tp_cp_group) == layout.tile_rank
        _open_channels((layout.cp_group, layout.pp_group, layout.tp_cp_group), device)
        return layout

    def with_ulysses(self, size: int, device: torch.device, *, timeout: timedelta = TIMEOUT) -> ParallelLayout:
        """The same layout with so many neighbouring context-parallel ranks for each ring rank. Every process of the world calls it.

        The groups are made anew by each call, and last as long as the process group of the world.

        Args:
            size: context-parallel ranks for each ring rank.
            device: where the groups' channels are opened.
            timeout: how long a collective of these groups may wait. torch's own default is 10 minutes with NCCL and HCCL.
        """
        if size == 1:
            return replace(self, ulysses_size=1, ulysses_group=None, ring_group=self.cp_group)
        ranks = dist.get_process_group_ranks(self.cp_group)
        blocks = [tuple(ranks[first : first + size]) for first in range(0, len(ranks), size)]
        strides = [tuple(ranks[first::size]) for first in range(size)]
        ulysses_group, ring_group = new_groups([blocks, strides], device, timeout)
        return replace(self, ulysses_size=size, ulysses_group=ulysses_group, ring_group=ring_group)


def new_groups(kinds: Sequence[Sequence[tuple[int, ...]]], device: torch.device, timeout: timedelta) -> list[Any]:
    """Process groups of several kinds: of each kind the one that this process is in. Every process of the world calls it.

    Args:
        kinds: for each kind, groups of ranks that this process knows of; it is in one of them. Processes may know of different groups.
        device: where the groups' channels are opened.
        timeout: how long a collective of these groups may wait.
    """
    known: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(known, [[tuple(ranks) for ranks in groups] for groups in kinds])
    found = []
    for kind in range(len(kinds)):
        # torch wants every process to make every group, in the same order
        made = {ranks: dist.new_group(list(ranks), timeout=timeout) for ranks in sorted({ranks for each in known for ranks in each[kind]})}
        found += [group for ranks, group in made.items() if dist.get_rank() in ranks]
    _open_channels(tuple(found), device)
    return found


def _open_channels(groups: tuple[Any, ...], device: torch.device) -> None:
    """A collective in each group, all ranks of it at once: NCCL and HCCL leave it undefined what happens where a group's first
    operation is a batch of point-to-point transfers that not every rank takes part in."""
    if device.type != "cpu":
        for group in groups:
            dist.all_reduce(torch.zeros(1, device=device), group=group)
