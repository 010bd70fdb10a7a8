"""How Megatron cuts weights over tensor parallelism and pipeline stages: the parts of a whole tensor, and the whole of the parts."""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch

from mindspeed_vita.files.tensors import same

LAYER = re.compile(r"(language\.decoder\.layers\.)(\d+)(\..*)")
"""Native names of decoder layers: what comes before the number, the number, the rest."""
_COLUMN = ("linear_qkv.weight", "linear_qkv.bias", "linear_fc1.weight", "linear_fc1.bias")
_ROW = ("linear_proj.weight", "linear_fc2.weight")
_TABLES = ("word_embeddings.weight", "output_layer.weight")


def join(name: str, parts: Sequence[torch.Tensor]) -> torch.Tensor:
    """A whole tensor from those of the tensor-parallel ranks. A tower's may be whole on every rank, or split over them.

    Raises:
        ValueError: parts that should be the same differ.
    """
    if len(parts) == 1:
        return parts[0]
    if _is_gated(name):
        gates, ups = zip(*(part.chunk(2) for part in parts))
        return torch.cat([*gates, *ups])
    if not is_cut(name):
        if all(same(part, parts[0]) for part in parts[1:]):
            return parts[0]
        if name.startswith("language.") or not name.endswith((*_COLUMN, *_ROW)):
            raise ValueError(f"{name} should be the same on every tensor-parallel rank, and is not; the files are not of one checkpoint")
    return torch.cat(list(parts), dim=1 if name.endswith(_ROW) else 0)


def is_cut(name: str) -> bool:
    """Whether tensor parallelism always cuts a native tensor, whatever is in it."""
    return name.startswith("language.") and name.endswith((*_COLUMN, *_ROW, *_TABLES))


def part(name: str, whole: torch.Tensor, rank: int, size: int) -> torch.Tensor:
    """One tensor-parallel rank's part of a native tensor. The tower and the projector stay whole on every rank.

    Raises:
        ValueError: the axis that is cut does not divide.
    """
    if size == 1 or not is_cut(name):
        return whole
    if _is_gated(name):
        return torch.cat([_cut(name, half, 0, rank, size) for half in whole.chunk(2)])
    return _cut(name, whole, 1 if name.endswith(_ROW) else 0, rank, size)


def _is_gated(name: str) -> bool:
    return name.startswith("language.") and name.endswith("mlp.linear_fc1.weight")


def _cut(name: str, tensor: torch.Tensor, axis: int, rank: int, size: int) -> torch.Tensor:
    if tensor.shape[axis] % size:
        raise ValueError(f"--tp {size} does not divide {name}, which has {tensor.shape[axis]} along the axis that is cut; use a divisor")
    length = tensor.shape[axis] // size
    return tensor.narrow(axis, rank * length, length)
