"""Which collective an operator of torch.distributed is, in which group, and how many bytes of tensors it is given."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Optional

import torch
import torch.distributed as dist
from torch.utils._pytree import tree_leaves

_NAMES = {
    "allreduce_": "all_reduce",
    "allreduce_coalesced_": "all_reduce",
    "broadcast_": "broadcast",
    "allgather_": "all_gather",
    "_allgather_base_": "all_gather",
    "allgather_into_tensor_coalesced_": "all_gather",
    "reduce_scatter_": "reduce_scatter",
    "_reduce_scatter_base_": "reduce_scatter",
    "reduce_scatter_tensor_coalesced_": "reduce_scatter",
    "alltoall_base_": "all_to_all",
    "alltoall_": "all_to_all",
    "send": "send",
    "recv_": "recv",
}
_OUTPUT_FIRST = {"_allgather_base_", "_reduce_scatter_base_", "alltoall_base_"}
"""Operators whose first argument is the output and whose second is the input."""
_TWO_LISTS = {"allgather_", "reduce_scatter_", "allgather_into_tensor_coalesced_", "reduce_scatter_tensor_coalesced_", "alltoall_"}


@dataclass(frozen=True)
class Collective:
    """A kind of collective in a group."""

    name: str
    """all_reduce, broadcast, all_gather, reduce_scatter, all_to_all, send, or recv."""
    ranks: tuple[int, ...]
    """The group's ranks."""


def collective(operator: Any, args: Sequence[Any]) -> Optional[tuple[Collective, int, str]]:
    """The collective, bytes of this rank's input (of the output for recv), and the process group's name.

    None for operators that move no tensor. Several process groups may have the same ranks.

    Args:
        operator: overload that was called.
        args: its arguments.
    """
    packet = operator._overloadpacket.__name__
    name = _NAMES.get(packet)
    if name is None:
        return None
    given = args[1] if packet in _OUTPUT_FIRST or packet in _TWO_LISTS else args[0]
    size = sum(tensor.numel() * tensor.element_size() for tensor in tree_leaves(given) if isinstance(tensor, torch.Tensor))
    group = next(arg for arg in args if isinstance(arg, torch.ScriptObject) and "ProcessGroup" in str(arg._type()))
    process_group = dist.ProcessGroup.unbox(group)
    return Collective(name, tuple(dist.get_process_group_ranks(process_group))), size, process_group.group_name
