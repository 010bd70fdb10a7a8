"""Between a rank's tensors and the whole model's; written independently of the checkpoint code, whose tests it helps."""

from __future__ import annotations

import re
from typing import Optional

import torch

COLUMN = (
    *("word_embeddings.weight", "output_layer.weight", "linear_qkv.weight", "linear_qkv.bias"),
    *("linear_fc1.weight", "linear_fc1.bias", "q_norm.weight", "k_norm.weight"),
)
ROW = ("linear_proj.weight", "mlp.linear_fc2.weight")


def global_name(name: str, first_layer: int, *, tied: bool = False) -> str:
    """A parameter's name in the whole model: decoder layers count on over the pipeline stages, and a tied output layer is the table."""
    if tied and name == "language.output_layer.weight":
        return "language.embedding.word_embeddings.weight"
    return re.sub(r"(language\.decoder\.layers\.)(\d+)", lambda match: f"{match[1]}{int(match[2]) + first_layer}", name)


def take_slice(name: str, full: torch.Tensor, tp_rank: int, tp_size: int, *, tower_cut: bool = False, heads: int = 0) -> torch.Tensor:
    """The part of a full tensor that a tensor-parallel rank holds; the projector, and the tower unless it is cut, are replicated.

    With the tower's number of heads, zero heads fill them up to a multiple of tp_size.
    """
    if tp_size == 1:
        return full
    if _gated(name):
        return torch.cat([half.chunk(tp_size)[tp_rank] for half in full.chunk(2)])
    dim = _cut_dim(name, tower_cut)
    if dim is None:
        return full
    missing = -heads % tp_size if heads and _by_heads(name) else 0
    if missing:
        size = list(full.shape)
        size[dim] = full.shape[dim] // heads * missing
        full = torch.cat([full, full.new_zeros(size)], dim)
    return full.chunk(tp_size, dim)[tp_rank]


def join_slices(name: str, parts: list[torch.Tensor], *, tower_cut: bool = False, heads: int = 0) -> torch.Tensor:
    """The full tensor from the tensor-parallel ranks' parts; replicated parts must be equal, and what belongs to zero heads zero.

    Raises:
        AssertionError: they are not.
    """
    if len(parts) == 1:
        return parts[0]
    if _gated(name):
        gates, ups = zip(*(part.chunk(2) for part in parts))
        return torch.cat([*gates, *ups])
    dim = _cut_dim(name, tower_cut)
    if dim is not None:
        whole = torch.cat(parts, dim)
        if not heads or not _by_heads(name):
            return whole
        real = whole.shape[dim] // (heads + -heads % len(parts)) * heads
        assert not whole.narrow(dim, real, whole.shape[dim] - real).any(), f"{name}: a zero head is not zero"
        return whole.narrow(dim, 0, real)
    tolerance = 1e-6 * float(parts[0].abs().max().clamp_min(1e-12))
    for part in parts[1:]:
        torch.testing.assert_close(part, parts[0], rtol=0, atol=tolerance, msg=f"{name} differs over tp")
    return parts[0]


def _by_heads(name: str) -> bool:
    return name.startswith("vision.") and ".self_attention." in name


def _gated(name: str) -> bool:
    return name.startswith("language.") and name.endswith("mlp.linear_fc1.weight")


def _cut_dim(name: str, tower_cut: bool) -> Optional[int]:
    """The dim along which the ranks share a tensor; None where each holds all of it."""
    if not name.startswith(("language.", "vision.layers.") if tower_cut else "language."):
        return None
    return 0 if name.endswith(COLUMN) else 1 if name.endswith(ROW) else None
