"""The MLP projector over a grid that its stride need not divide: 27 x 27 patches of SigLIP at 384 become 14 x 14 tokens.

Shapes: B tiles, P = grid * grid patches, C vision hidden.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from mindspeed_vita.models.projector.mlp import MLPProjector, pixel_shuffle


class StrideProjector(MLPProjector):
    """Zeros fill the grid up at the right and at the bottom to a multiple of the stride; the rest, weights included, is as in "mlp"."""

    def merge(self, features_BPC: torch.Tensor) -> torch.Tensor:
        """See MLPProjector."""
        missing = -self.grid % self.side
        squares = F.pad(features_BPC.unflatten(1, (self.grid, self.grid)), (0, 0, 0, missing, 0, missing))
        return pixel_shuffle(squares.flatten(1, 2), self.grid + missing, self.side)
