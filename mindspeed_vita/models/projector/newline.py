"""The MLP projector with a learned newline after each row of a tile's tokens, as LLaVA-NeXT marks the rows of its grids.

Shapes: B tiles, R rows and columns of tokens in a tile, H output size.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from mindspeed_vita.models.projector.mlp import MLPProjector


class NewlineProjector(MLPProjector):
    """R * (R + 1) tokens a tile. The newline stands inside the tile, so that a tile's tokens stay together however tiles are shared out."""

    def __init__(self, *arguments: Any, output_size: int, **keywords: Any) -> None:
        super().__init__(*arguments, output_size=output_size, **keywords)
        self.newline = nn.Parameter(torch.zeros(1, output_size))

    def forward(self, features_BPC: torch.Tensor) -> torch.Tensor:
        """Rows for the language model: [B, tokens per tile, output_size]."""
        rows_BRRH = super().forward(features_BPC).unflatten(1, (self.grid // self.side, -1))
        newlines_BR1H = self.newline.expand(*rows_BRRH.shape[:2], 1, -1)
        return torch.cat([rows_BRRH, newlines_BR1H], dim=2).flatten(1, 2)
