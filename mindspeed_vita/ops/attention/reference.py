"""Attention as plain math in fp32: slow, memory-hungry, and what every other backend is compared with.

Shapes as in registry.py.
"""

from __future__ import annotations

from typing import Optional

import numpy as np
import torch


def refuse(query: torch.Tensor) -> Optional[str]:
    """The reference takes every call."""
    return None


def tiles(q_BPND: torch.Tensor, k_BPND: torch.Tensor, v_BPND: torch.Tensor, scale: float) -> torch.Tensor:
    """Bidirectional attention inside each tile; see api.tile_attention."""
    scores = torch.einsum("bqnd,bknd->bnqk", q_BPND.float(), k_BPND.float()) * scale
    return torch.einsum("bnqk,bknd->bqnd", scores.softmax(-1), v_BPND.float()).to(q_BPND.dtype)


def masked(
    q_TND: torch.Tensor, k_SGD: torch.Tensor, v_SGD: torch.Tensor, mask_TS: torch.Tensor, scale: float
) -> torch.Tensor:
    """Attention under any mask (True = may look). A query that may look nowhere gives zeros."""
    group = q_TND.shape[1] // k_SGD.shape[1]
    k_SND, v_SND = (x.float().repeat_interleave(group, dim=1) for x in (k_SGD, v_SGD))
    scores = torch.einsum("tnd,snd->nts", q_TND.float(), k_SND) * scale
    weights = scores.masked_fill(~mask_TS, float("-inf")).softmax(-1).nan_to_num(0.0)
    return torch.einsum("nts,snd->tnd", weights, v_SND).to(q_TND.dtype)


def blocks_forward(
    q_TND: torch.Tensor, k_SGD: torch.Tensor, v_SGD: torch.Tensor, segments: np.ndarray, *, causal: bool, scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """See registry.Backend."""
    outs, lses = [], []
    for q0, q1, k0, k1 in segments.tolist():
        scores_NQS, v_NSD = _block_scores(q_TND[q0:q1], k_SGD[k0:k1], causal, scale), _per_head(v_SGD[k0:k1], q_TND.shape[1])
        lse_NQ = scores_NQS.logsumexp(-1)
        outs.append(((scores_NQS - lse_NQ.unsqueeze(-1)).exp() @ v_NSD).transpose(0, 1).to(q_TND.dtype))
        lses.append(lse_NQ.transpose(0, 1))
    return torch.cat(outs), torch.cat(lses)


def blocks_backward(
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
    """See registry.Backend. dS = P * (dO V^T - sum(dO * O)), with P from the final log-sum-exp."""
    heads, kv_heads = q_TND.shape[1], k_SGD.shape[1]

    def fold(x_NSD: torch.Tensor) -> torch.Tensor:
        return x_NSD.unflatten(0, (kv_heads, heads // kv_heads)).sum(1).transpose(0, 1)

    for q0, q1, k0, k1 in segments.tolist():
        k_NSD, v_NSD = _per_head(k_SGD[k0:k1], heads), _per_head(v_SGD[k0:k1], heads)
        q_NQD, grad_NQD, out_NQD = (_per_head(x[q0:q1], heads) for x in (q_TND, grad_TND, out_TND))
        weights_NQS = (_block_scores(q_TND[q0:q1], k_SGD[k0:k1], causal, scale) - lse_TN[q0:q1].T.unsqueeze(-1)).exp()
        dscores_NQS = weights_NQS * (grad_NQD @ v_NSD.transpose(1, 2) - (grad_NQD * out_NQD).sum(-1, keepdim=True)) * scale
        dq_TND[q0:q1] += (dscores_NQS @ k_NSD).transpose(0, 1)
        dkv_2SGD[0, k0:k1] += fold(dscores_NQS.transpose(1, 2) @ q_NQD)
        dkv_2SGD[1, k0:k1] += fold(weights_NQS.transpose(1, 2) @ grad_NQD)


def _per_head(x_SGD: torch.Tensor, heads: int) -> torch.Tensor:
    """fp32 [N, S, D], each key head repeated for its queries."""
    return x_SGD.float().transpose(0, 1).repeat_interleave(heads // x_SGD.shape[1], dim=0)


def _block_scores(q_QND: torch.Tensor, k_SGD: torch.Tensor, causal: bool, scale: float) -> torch.Tensor:
    scores_NQS = _per_head(q_QND, q_QND.shape[1]) @ _per_head(k_SGD, q_QND.shape[1]).transpose(1, 2) * scale
    if causal:
        hidden = torch.ones(scores_NQS.shape[1:], dtype=torch.bool, device=q_QND.device).triu(1)
        scores_NQS = scores_NQS.masked_fill(hidden, float("-inf"))
    return scores_NQS
