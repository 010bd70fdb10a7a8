"""Attention as plain math in fp32: slow, memory-hungry, and what every other backend is compared with.

Shapes as in registry.py.
"""

from __future__ import annotations

from typing import Optional

import torch

from mindspeed_vita.ops.attention.blocks import merge_
from mindspeed_vita.ops.attention.call import Blocks, Heads, Upstream
from mindspeed_vita.ops.attention.paged import Paged

__all__ = ["blocks_backward", "blocks_forward", "masked", "merge_", "paged_forward", "refuse", "tiles"]


def refuse(heads: Heads) -> Optional[str]:
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


def blocks_forward(blocks: Blocks) -> tuple[torch.Tensor, torch.Tensor]:
    """See registry.Backend."""
    outs, lses = [], []
    q_TND = blocks.q_TND
    for q0, q1, k0, k1 in blocks.segments.tolist():
        scores_NQS, v_NSD = _block_scores(blocks, q0, q1, k0, k1), _per_head(blocks.v_SGD[k0:k1], q_TND.shape[1])
        lse_NQ = scores_NQS.logsumexp(-1)
        outs.append(((scores_NQS - lse_NQ.unsqueeze(-1)).exp() @ v_NSD).transpose(0, 1).to(q_TND.dtype))
        lses.append(lse_NQ.transpose(0, 1))
    return torch.cat(outs), torch.cat(lses)


def blocks_backward(blocks: Blocks, upstream: Upstream, *, dq_TND: torch.Tensor, dkv_2SGD: torch.Tensor) -> None:
    """See registry.Backend. dS = P * (dO V^T - sum(dO * O)), with P from the final log-sum-exp."""
    q_TND, k_SGD, v_SGD = blocks.q_TND, blocks.k_SGD, blocks.v_SGD
    heads, kv_heads = q_TND.shape[1], k_SGD.shape[1]

    def fold(x_NSD: torch.Tensor) -> torch.Tensor:
        return x_NSD.unflatten(0, (kv_heads, heads // kv_heads)).sum(1).transpose(0, 1)

    for q0, q1, k0, k1 in blocks.segments.tolist():
        k_NSD, v_NSD = _per_head(k_SGD[k0:k1], heads), _per_head(v_SGD[k0:k1], heads)
        q_NQD, grad_NQD, out_NQD = (_per_head(x[q0:q1], heads) for x in (q_TND, upstream.grad_TND, upstream.out_TND))
        weights_NQS = (_block_scores(blocks, q0, q1, k0, k1) - upstream.lse_TN[q0:q1].T.unsqueeze(-1)).exp()
        dscores_NQS = weights_NQS * (grad_NQD @ v_NSD.transpose(1, 2) - (grad_NQD * out_NQD).sum(-1, keepdim=True)) * blocks.scale
        dq_TND[q0:q1] += (dscores_NQS @ k_NSD).transpose(0, 1)
        dkv_2SGD[0, k0:k1] += fold(dscores_NQS.transpose(1, 2) @ q_NQD)
        dkv_2SGD[1, k0:k1] += fold(weights_NQS.transpose(1, 2) @ grad_NQD)


def paged_forward(paged: Paged) -> tuple[torch.Tensor, torch.Tensor]:
    """See registry.Backend. Written out sequence by sequence, so that it shares nothing with what it is compared with."""
    sequences, heads = paged.sequences, paged.q_TND.shape[1]
    outs, lses, start = [], [], 0
    for stop, table, length in zip(sequences.query_ends.tolist(), sequences.tables, sequences.lengths.tolist()):
        blocks = torch.from_numpy(table).to(paged.k_BSGD.device)
        k_NKD, v_NKD = (_per_head(x[blocks].flatten(0, 1)[:length], heads) for x in (paged.k_BSGD, paged.v_BSGD))
        scores_NQK = _per_head(paged.q_TND[start:stop], heads) @ k_NKD.transpose(1, 2) * paged.scale
        lses.append(scores_NQK.logsumexp(-1).T)
        outs.append((scores_NQK.softmax(-1) @ v_NKD).transpose(0, 1).to(paged.q_TND.dtype))
        start = stop
    return torch.cat(outs), torch.cat(lses)


def _per_head(x_SGD: torch.Tensor, heads: int) -> torch.Tensor:
    """fp32 [N, S, D], each key head repeated for its queries."""
    return x_SGD.float().transpose(0, 1).repeat_interleave(heads // x_SGD.shape[1], dim=0)


def _block_scores(blocks: Blocks, q0: int, q1: int, k0: int, k1: int) -> torch.Tensor:
    q_QND, k_SGD = blocks.q_TND[q0:q1], blocks.k_SGD[k0:k1]
    scores_NQS = _per_head(q_QND, q_QND.shape[1]) @ _per_head(k_SGD, q_QND.shape[1]).transpose(1, 2) * blocks.scale
    if blocks.causal:
        hidden = torch.ones(scores_NQS.shape[1:], dtype=torch.bool, device=q_QND.device).triu(1)
        scores_NQS = scores_NQS.masked_fill(hidden, float("-inf"))
    return scores_NQS
