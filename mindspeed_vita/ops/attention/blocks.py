"""Attention block by block, with the log-sum-exp, for ring attention: which backend serves it, and how partial results merge.

A call takes segments, int64[n, 4]: query start and stop, key start and stop. The query ranges of one call do not overlap; key
ranges may. A segment is mask-free, or (causal) a square with causal attention inside.
Shapes: T query tokens, S keys, N query heads, G key heads, D width; Q the query rows of all segments, one after the other.
"""

from __future__ import annotations

from typing import Optional, Protocol

import numpy as np
import torch

from mindspeed_vita.ops.attention import reference, torch_native
from mindspeed_vita.ops.attention.choice import choose


class BlockKernels(Protocol):
    """What a backend offers to ring attention."""

    def refuse_blocks(self, query: torch.Tensor) -> Optional[str]:
        """Why it cannot serve this tensor; None if it can."""

    def blocks_forward(
        self, q_TND: torch.Tensor, k_SGD: torch.Tensor, v_SGD: torch.Tensor, segments: np.ndarray, *, causal: bool, scale: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """out_QND and its log-sum-exp, fp32 [Q, N]."""

    def blocks_backward(
        self,
        grad_TND: torch.Tensor,
        q_TND: torch.Tensor,
        k_SGD: torch.Tensor,
        v_SGD: torch.Tensor,
        out_TND: torch.Tensor,
        lse_TN: torch.Tensor,
        segments: np.ndarray,
        *,
        causal: bool,
        scale: float,
        dq_TND: torch.Tensor,
        dkv_2SGD: torch.Tensor,
    ) -> None:
        """Adds the segments' gradients to dq and dkv, both fp32. out and lse are the final ones, merged over all segments."""


_BACKENDS: dict[str, BlockKernels] = {"torch_native": torch_native, "reference": reference}  # type: ignore[dict-item]


def block_kernels(query: torch.Tensor, name: Optional[str] = None) -> BlockKernels:
    """The first backend that does not refuse, or the named one.

    Raises:
        ValueError: none can serve the tensor, with every reason; or no backend has that name.
    """
    return choose(_BACKENDS, lambda backend: backend.refuse_blocks(query), name)


def segment_rows(segments: np.ndarray, device: torch.device) -> torch.Tensor:
    """Query rows of all segments, one after the other: int64[Q]."""
    rows = np.concatenate([np.arange(start, stop) for start, stop in segments[:, :2]]) if len(segments) else np.zeros(0, np.int64)
    return torch.from_numpy(rows).to(device)


def merge_(
    out_TND: torch.Tensor, lse_TN: torch.Tensor, rows_Q: torch.Tensor, block_out_QND: torch.Tensor, block_lse_QN: torch.Tensor
) -> None:
    """Merges a partial result into some rows of an fp32 accumulator, in place, by log-sum-exp."""
    old_lse = lse_TN[rows_Q]
    new_lse = torch.logaddexp(old_lse, block_lse_QN)
    out_TND[rows_Q] = (
        out_TND[rows_Q] * (old_lse - new_lse).exp().unsqueeze(-1) + block_out_QND.float() * (block_lse_QN - new_lse).exp().unsqueeze(-1)
    )
    lse_TN[rows_Q] = new_lse
