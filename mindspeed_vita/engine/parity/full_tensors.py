"""Between a rank's tensors and the whole model's; written independently of the checkpoint code, whose tests it helps."""

from __future__ import annotations

import re
from typing import Optional

import torch

COLUMN = ("word_embeddings.weight", "output_layer.weight", "linear_qkv.weight", "linear_qkv.bias", "linear_fc1.weight", "linear_fc1.bias")
ROW = ("linear_proj.weight", "mlp.linear_fc2.weight")


def global_name(name: str, pp_rank: int, layers_per_stage: int) -> str:
    """A parameter's name in the whole model: decoder layers count on over the pipeline stages."""
    return re.sub(
        r"(language\.decoder\.layers\.)(\d+)", lambda match: f"{match[1]}{int(match[2]) + pp_rank * layers_per_stage}", name
    )


def take_slice(name: str, full: torch.Tensor, tp_rank: int, tp_size: int, *, tower_cut: bool = False) -> torch.Tensor:
    """The part of a full tensor that a tensor-parallel rank holds; the projector, and the tower unless it is cut, are replicated."""
    if tp_size == 1:
        return full
    if _gated(name):
        return torch.cat([half.chunk(tp_size)[tp_rank] for half in full.chunk(2)])
    dim = _cut_dim(name, tower_cut)
    return full if dim is None else full.chunk(tp_size, dim)[tp_rank]


def join_slices(name: str, parts: list[torch.Tensor], *, tower_cut: bool = False) -> torch.Tensor:
    """The full tensor from the tensor-parallel ranks' parts; replicated parts must be equal.

    Raises:
        AssertionError: replicated parts differ.
    """
    if len(parts) == 1:
        return parts[0]
    if _gated(name):
        gates, ups = zip(*(part.chunk(2) for part in parts))
        return torch.cat([*gates, *ups])
    dim = _cut_dim(name, tower_cut)
    if dim is not None:
        return torch.cat(parts, dim)
    tolerance = 1e-6 * float(parts[0].abs().max().clamp_min(1e-12))
    for part in parts[1:]:
        torch.testing.assert_close(part, parts[0], rtol=0, atol=tolerance, msg=f"{name} differs over tp")
    return parts[0]


def _gated(name: str) -> bool:
    return name.startswith("language.") and name.endswith("mlp.linear_fc1.weight")


def _cut_dim(name: str, tower_cut: bool) -> Optional[int]:
    """The dim along which the ranks share a tensor; None where each holds all of it."""
    if not name.startswith(("language.", "vision.layers.") if tower_cut else "language."):
        return None
    return 0 if name.endswith(COLUMN) else 1 if name.endswith(ROW) else None
