"""The linear layers of a tower: whole on every rank, or with their weights shared out over the tensor-parallel ranks.

A rank holds whole heads. Where they do not divide by tp (InternViT-6B has 25), the last ranks hold zero heads too: attention.py.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch
from megatron.core.tensor_parallel.layers import ColumnParallelLinear, RowParallelLinear, set_tensor_model_parallel_attributes
from megatron.core.tensor_parallel.mappings import copy_to_tensor_model_parallel_region, reduce_from_tensor_model_parallel_region
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import nn

Linear = Callable[[int, int, bool], nn.Module]
"""Builds a layer from its full input and output width, and whether it has a bias."""


def _as_it_is(features: torch.Tensor) -> torch.Tensor:
    return features


@dataclass(frozen=True, kw_only=True)
class TowerLinears:
    """How a tower builds its linear layers; the default is for a tower that every rank holds whole."""

    tp_rank: int = 0
    """Place among the ranks that share the weights."""
    tp_size: int = 1
    """How many share them; a layer between `column` and `row` is that many times narrower."""
    column: Linear = nn.Linear
    """Whole input to this rank's part of the output."""
    row: Linear = nn.Linear
    """This rank's part of the input to the whole output."""
    leave: Callable[[torch.Tensor], torch.Tensor] = _as_it_is
    """For the tower's output: what follows gives each rank the gradient of its own rows only, the sharded layers need the sum."""
    total: Callable[[torch.Tensor], torch.Tensor] = _as_it_is
    """Sum over the ranks of what each has of its own heads; so is its gradient."""

    def local_heads(self, num_heads: int) -> int:
        """Heads that a rank holds, zero heads included."""
        return -(-num_heads // self.tp_size)

    def share_heads(self, parameter: nn.Parameter, num_heads: int) -> None:
        """Marks a parameter that is shared out by heads along its partition_dim, and whether zero heads pad it."""
        if self.tp_size == 1:
            return
        if not getattr(parameter, "tensor_model_parallel", False):  # the linear layers' are marked already
            set_tensor_model_parallel_attributes(parameter, is_parallel=True, dim=0, stride=1)
        if num_heads % self.tp_size:
            parameter.num_heads, parameter.held_heads = num_heads, self.local_heads(num_heads)  # type: ignore[attr-defined]


class _Column(ColumnParallelLinear):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x)[0]


class _Row(RowParallelLinear):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x)[0]


def whole_linears(transformer_config: TransformerConfig) -> TowerLinears:
    """For a tower that every rank holds whole."""
    return TowerLinears()


def sharded_linears(transformer_config: TransformerConfig, *, tp_rank: int, tp_size: int) -> TowerLinears:
    """megatron's column- and row-parallel layers, with inputs whole on every rank: a tower has no sequence to cut.

    Their weights are left without values; VitaModel draws those, the same for any tp_size.
    """
    if tp_size == 1:
        return TowerLinears()
    config = copy.copy(transformer_config)
    config.sequence_parallel = False
    config.use_cpu_initialization = True  # the weights go where the model goes
    config.gradient_accumulation_fusion = False

    def no_values(weight: torch.Tensor) -> torch.Tensor:
        return weight

    def column(inputs: int, outputs: int, bias: bool) -> nn.Module:
        return _Column(inputs, outputs, config=config, init_method=no_values, bias=bias, gather_output=False)

    def row(inputs: int, outputs: int, bias: bool) -> nn.Module:
        return _Row(inputs, outputs, config=config, init_method=no_values, bias=bias, input_is_parallel=True, skip_bias_add=False)

    def total(partial_sums: torch.Tensor) -> torch.Tensor:
        return copy_to_tensor_model_parallel_region(reduce_from_tensor_model_parallel_region(partial_sums))

    return TowerLinears(
        tp_rank=tp_rank, tp_size=tp_size, column=column, row=row, leave=copy_to_tensor_model_parallel_region, total=total
    )
