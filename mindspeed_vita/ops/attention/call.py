"""What a call of an attention backend is made of, and what a backend is asked before the first call.

Shapes: T query tokens, S keys, N query heads, G key heads, D width of a head.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Union

import numpy as np
import torch

Rows = Union[slice, torch.Tensor]
"""Rows of a pack: a slice where they are one stretch, else int64 indices on the device."""


@dataclass(frozen=True, kw_only=True)
class Heads:
    """The heads that a backend would serve. It is asked when the model is built, so this holds no tensor."""

    num_heads: int
    """Query heads on this rank."""
    width: int
    """Width of a head."""
    dtype: torch.dtype
    """Of queries, keys and values."""
    device: torch.device
    """Where they lie."""

    @classmethod
    def of(cls, query: torch.Tensor) -> Heads:
        """The heads of queries [..., N, D]."""
        return cls(num_heads=query.shape[-2], width=query.shape[-1], dtype=query.dtype, device=query.device)


@dataclass(frozen=True, kw_only=True)
class Blocks:
    """Attention over some blocks of the score matrix: one call of a backend, forward or backward."""

    q_TND: torch.Tensor
    """Queries."""
    k_SGD: torch.Tensor
    """Keys."""
    v_SGD: torch.Tensor
    """Values."""
    segments: np.ndarray
    """int64[n, 4], one row per block: query start and stop, key start and stop. No block is empty. The query ranges of one call do
    not overlap; the key ranges may."""
    causal: bool
    """Whether each block is a square with causal attention inside. Otherwise no key of a block is masked."""
    scale: float
    """Factor on the scores."""


@dataclass(frozen=True, kw_only=True)
class Upstream:
    """What the backward pass of a call needs in addition to its inputs. Output and log-sum-exp are final: merged over all calls."""

    grad_TND: torch.Tensor
    """Gradient of the output."""
    out_TND: torch.Tensor
    """Output."""
    lse_TN: torch.Tensor
    """Log-sum-exp of each query's scores, fp32."""
