"""The process groups that a ring's keys travel in: by node, and once more where sends and receives are to be in different groups."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from datetime import timedelta
from itertools import groupby
from math import gcd
from typing import Any

import torch
import torch.distributed as dist

from mindspeed_vita.config import ParallelConfig
from mindspeed_vita.parallel.layout import TIMEOUT, ParallelLayout, new_groups
from mindspeed_vita.parallel.ring_exchange import Channel, GroupKeyExchange


def with_ring(
    layout: ParallelLayout, parallel: ParallelConfig, local_world_size: int, device: torch.device, *, timeout: timedelta = TIMEOUT
) -> ParallelLayout:
    """A layout with the ring, the Ulysses groups and the nodes that a recipe asks for. Every process of the world calls it.

    Args:
        layout: as megatron made it.
        parallel: of the recipe.
        local_world_size: processes of this process's node. They have consecutive ranks, as torchrun numbers them.
        device: where the groups' channels are opened.
        timeout: how long a collective of these groups may wait.
    """
    layout = layout.with_ulysses(parallel.ulysses, device, timeout=timeout)
    if layout.ring_size == 1:
        return layout
    ring = dist.get_process_group_ranks(layout.ring_group)
    size = told_node_size(parallel) or common_node_size(*_rings_and_nodes(ring, local_world_size))
    kinds = [[tuple(ring)]]
    if 1 < size < len(ring):
        kinds = [[tuple(ring[first : first + size]) for first in range(0, len(ring), size)], [tuple(ring[at::size]) for at in range(size)]]
        node_group, border_group = new_groups(kinds, device, timeout)
        layout = replace(layout, node_size=size, node_group=node_group, border_group=border_group)
    if parallel.ring_two_groups:
        layout = replace(layout, second_groups=tuple(new_groups(kinds, device, timeout)))
    return layout


def told_node_size(parallel: ParallelConfig) -> int:
    """Ring ranks of a node, as a recipe says; 0 where it does not."""
    return max(1, min(parallel.cp_per_node, parallel.cp) // parallel.ulysses) if parallel.cp_per_node else 0


def key_exchange(layout: ParallelLayout, gradients: torch.dtype = torch.float32) -> GroupKeyExchange:
    """How keys travel in a layout's ring.

    Args:
        layout: of this rank.
        gradients: in which gradients of keys and values travel.
    """
    groups = [layout.node_group, layout.border_group] if layout.node_size else [layout.ring_group]
    inside, *across = (Channel(*pair) for pair in zip(groups, layout.second_groups or (None, None)))
    return GroupKeyExchange(inside, across[0] if across else None, gradients)


def common_node_size(rings: Iterable[Sequence[int]], nodes: Sequence[int]) -> int:
    """The largest number of neighbours for which, on every ring, each block of so many lies inside one node.

    Rings may lie on nodes in different ways. All have the same node size, so that all ranks make the same groups.

    Args:
        rings: each the ranks of the world in the order of a ring.
        nodes: for each rank of the world, the node that it is on.
    """
    return gcd(*(len(list(block)) for ring in rings for _, block in groupby(nodes[rank] for rank in ring)))


def _rings_and_nodes(ring: Sequence[int], local_world_size: int) -> tuple[list[Sequence[int]], list[int]]:
    """The ring of each rank of the world, and its node. Every process of the world calls it, with its own ring and node's processes."""
    told: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(told, (ring, local_world_size))
    nodes: list[int] = []
    while len(nodes) < len(told):
        nodes += [len(nodes)] * told[len(nodes)][1]
    return [each for each, _ in told], nodes
