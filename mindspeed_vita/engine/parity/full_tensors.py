"""Between a rank's tensors and the whole model's; written independently of the checkpoint code, whose tests it helps."""

from __future__ import annotations

import re

import torch

COLUMN = ("word_embeddings.weight", "output_layer.weight", "linear_qkv.weight", "linear_qkv.bias")
ROW = ("linear_proj.weight", "mlp.linear_fc2.weight")


def global_name(name: str, pp_rank: int, layers_per_stage: int) -> str:
    """A parameter's name in the whole model: decoder layers count on over the pipeline stages."""
    return re.sub(
        r"(language\.decoder\.layers\.)(\d+)", lambda match: f"{match[1]}{int(match[2]) + pp_rank * layers_per_stage}", name
    )


def take_slice(name: str, full: torch.Tensor, tp_rank: int, tp_size: int) -> torch.Tensor:
    """The part of a full tensor that a tensor-parallel rank holds; tower and projector are replicated."""
    if tp_size == 1 or not name.startswith("language."):
        return full
    if name.endswith("mlp.linear_fc1.weight"):
        return torch.cat([half.chunk(tp_size)[tp_rank] for half in full.chunk(2)])
    if name.endswith(COLUMN):
        return full.chunk(tp_size)[tp_rank]
    return full.chunk(tp_size, dim=1)[tp_rank] if name.endswith(ROW) else full


def join_slices(name: str, parts: list[torch.Tensor]) -> torch.Tensor:
    """The full tensor from the tensor-parallel ranks' parts; replicated parts must be equal.

    Raises:
        AssertionError: replicated parts differ.
    """
    if len(parts) == 1:
        return parts[0]
    if name.startswith("language."):
        if name.endswith("mlp.linear_fc1.weight"):
            gates, ups = zip(*(part.chunk(2) for part in parts))
            return torch.cat([*gates, *ups])
        if name.endswith(COLUMN):
            return torch.cat(parts)
        if name.endswith(ROW):
            return torch.cat(parts, dim=1)
    tolerance = 1e-6 * float(parts[0].abs().max().clamp_min(1e-12))
    for part in parts[1:]:
        torch.testing.assert_close(part, parts[0], rtol=0, atol=tolerance, msg=f"{name} differs over tp")
    return parts[0]
