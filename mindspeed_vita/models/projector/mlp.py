"""Pixel shuffle, LayerNorm, and two linear layers without bias: the projector of the released weights.

Shapes: B tiles, P = grid * grid patches, C vision hidden, s the shuffle's side.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import nn

from mindspeed_vita.config import ProjectorConfig


def pixel_shuffle(features_BPC: torch.Tensor, grid: int, side: int) -> torch.Tensor:
    """Merges each side x side square of patches into one row: [B, P / side ** 2, side ** 2 * C], channels (row, column, C)."""
    merged = grid // side
    squares = features_BPC.unflatten(1, (merged, side, merged, side)).permute(0, 1, 3, 2, 4, 5)
    return squares.reshape(len(features_BPC), merged * merged, -1)


class MLPProjector(MegatronModule):
    """Long-VITA section 3.1: 4,096 -> 1,024 -> language hidden, exact GELU between."""

    def __init__(
        self, config: ProjectorConfig, *, grid: int, input_size: int, output_size: int, transformer_config: TransformerConfig
    ) -> None:
        super().__init__(config=transformer_config)
        self.grid, self.side = grid, config.pixel_shuffle
        merged_size = input_size * config.pixel_shuffle**2
        self.norm = nn.LayerNorm(merged_size, eps=config.norm_eps)
        self.linear_fc1 = nn.Linear(merged_size, config.hidden_size, bias=False)
        self.linear_fc2 = nn.Linear(config.hidden_size, output_size, bias=False)

    def merge(self, features_BPC: torch.Tensor) -> torch.Tensor:
        """Squares of patches side by side: [B, tokens, s ** 2 * C]."""
        return pixel_shuffle(features_BPC, self.grid, self.side)

    def forward(self, features_BPC: torch.Tensor) -> torch.Tensor:
        """Rows for the language model: [B, tokens per tile, output_size]."""
        return self.linear_fc2(F.gelu(self.linear_fc1(self.norm(self.merge(features_BPC)))))
