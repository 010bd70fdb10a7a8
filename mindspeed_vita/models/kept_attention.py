"""Attention results that outlive a layer's first forward pass, so that its recomputation does not compute attention again.

Source: DISTFLASHATTN's rematerialisation-aware checkpointing, arXiv 2310.03294, section 3.3.
"""

from __future__ import annotations

from typing import Optional

import torch


class KeptAttention:
    """Output and log-sum-exp of one call of attention: of one layer, for one micro-batch.

    The layer makes one for each forward pass, and its recomputation holds the same object. So micro-batches may be in flight in any
    order. What no backward pass takes is freed with the graph.
    """

    def __init__(self) -> None:
        self._pair: Optional[tuple[torch.Tensor, torch.Tensor]] = None

    def keep(self, out: torch.Tensor, lse: torch.Tensor) -> None:
        """Called in the pass without gradients. The tensors must not be changed afterwards."""
        self._pair = out, lse

    def take(self) -> Optional[tuple[torch.Tensor, torch.Tensor]]:
        """What was kept, once; None if there is nothing, as in a second backward pass over the same graph."""
        pair, self._pair = self._pair, None
        return pair
