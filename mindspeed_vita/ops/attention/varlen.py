"""Block attention by a kernel for variable lengths: gathers the rows of the segments, makes few calls, puts the results back."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import torch

from mindspeed_vita.ops.attention.blocks import PackedSegments, add_rows_, pack_segments


class VarlenKernel(Protocol):
    """One fused kernel over several sequences that lie one after the other. Q query rows, K key rows, the rest as in registry.py."""

    def forward(
        self, q_QND: torch.Tensor, k_KGD: torch.Tensor, v_KGD: torch.Tensor, packed: PackedSegments, *, causal: bool, scale: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """out_QND and its log-sum-exp, fp32 [N, Q]."""

    def backward(
        self,
        grad_QND: torch.Tensor,
        q_QND: torch.Tensor,
        k_KGD: torch.Tensor,
        v_KGD: torch.Tensor,
        out_QND: torch.Tensor,
        lse_NQ: torch.Tensor,
        packed: PackedSegments,
        *,
        causal: bool,
        scale: float,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """dq, dk, dv of those rows."""


def varlen_forward(
    kernel: VarlenKernel,
    q_TND: torch.Tensor,
    k_SGD: torch.Tensor,
    v_SGD: torch.Tensor,
    segments: np.ndarray,
    *,
    causal: bool,
    scale: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Backend.blocks_forward by as few calls of the kernel as copies of keys allow; see pack_segments."""
    outs, lses = [], []
    for packed in pack_segments(segments, q_TND.device):
        keys, values = k_SGD[packed.key_rows], v_SGD[packed.key_rows]
        out_QND, lse_NQ = kernel.forward(q_TND[packed.query_rows], keys, values, packed, causal=causal, scale=scale)
        outs.append(out_QND)
        lses.append(lse_NQ.transpose(0, 1))
    return (outs[0], lses[0]) if len(outs) == 1 else (torch.cat(outs), torch.cat(lses))


def varlen_backward(
    kernel: VarlenKernel,
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
    """Backend.blocks_backward by the same calls."""
    for packed in pack_segments(segments, q_TND.device):
        grad, query, out, lse_QN = (x[packed.query_rows] for x in (grad_TND, q_TND, out_TND, lse_TN))
        keys, values = k_SGD[packed.key_rows], v_SGD[packed.key_rows]
        # kernels read the log-sum-exp without regard to strides
        lse_NQ = lse_QN.transpose(0, 1).contiguous()
        dq, dk, dv = kernel.backward(grad.contiguous(), query, keys, values, out, lse_NQ, packed, causal=causal, scale=scale)
        add_rows_(dq_TND, packed.query_rows, dq)
        add_rows_(dkv_2SGD[0], packed.key_rows, dk)
        add_rows_(dkv_2SGD[1], packed.key_rows, dv)
