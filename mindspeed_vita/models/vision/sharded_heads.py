"""What a rank of a cut tower writes to a native checkpoint and reads from it: whole heads, zero heads left out."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from megatron.core.dist_checkpointing.mapping import ShardedTensor, ShardedTensorFactory
from megatron.core.transformer.utils import make_sharded_tensors_for_checkpoint
from torch import nn


def sharded_tower_state(tower: nn.Module, prefix: str, tp_rank: int) -> dict[str, Any]:
    """name -> ShardedTensor, or a factory of one piece a head where zero heads pad the last ranks."""
    cut, padded = {}, {}
    for name, parameter in tower.named_parameters():
        if not getattr(parameter, "tensor_model_parallel", False):
            continue
        cut[name] = parameter.partition_dim  # type: ignore[attr-defined]
        if getattr(parameter, "num_heads", None):
            padded[prefix + name] = parameter
    sharded = make_sharded_tensors_for_checkpoint(tower.state_dict(keep_vars=True), prefix, cut, ())
    return {name: _of_heads(entry, padded[name], tp_rank) if name in padded else entry for name, entry in sharded.items()}


def _of_heads(entry: ShardedTensor, parameter: Any, tp_rank: int) -> ShardedTensorFactory:
    shared = {"dim": parameter.partition_dim, "heads": parameter.num_heads, "held": parameter.held_heads, "tp_rank": tp_rank}
    merge = partial(_merge, shape=tuple(parameter.shape), **shared)
    return ShardedTensorFactory(entry.key, entry.data, partial(_split, **shared), merge, entry.replica_id)


def _split(
    key: str, data: torch.Tensor, replica_id: Any, flattened_range: Any = None, *, dim: int, heads: int, held: int, tp_rank: int
) -> dict[str, ShardedTensor]:
    """One regular piece of the global tensor for each real head that this rank holds: a slice, so that it shows which elements it has."""
    first = tp_rank * held
    return {
        str(first + place): ShardedTensor.from_rank_offsets(key, part, (dim, first + place, heads), replica_id=replica_id)
        for place, part in enumerate(data.chunk(held, dim))
        if first + place < heads
    }


def _merge(
    loaded: dict[str, torch.Tensor], *, shape: tuple[int, ...], dim: int, heads: int, held: int, tp_rank: int
) -> torch.Tensor:
    """This rank's tensor again, zeros for its zero heads."""
    parts = [loaded[name] for name in sorted(loaded, key=int)]
    size = list(shape)
    size[dim] = shape[dim] // held * (held - len(parts))
    like = parts[0] if parts else torch.empty(0)
    return torch.cat([*parts, like.new_zeros(size)], dim)
