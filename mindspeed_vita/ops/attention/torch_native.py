"""Attention by torch's own fused kernels: the flash kernel on a CPU, flash or memory-efficient on CUDA. Shapes as in api.py."""

from __future__ import annotations

from typing import Optional, Sequence

import numpy as np
import torch
import torch.nn.functional as F


def refuse(query: torch.Tensor) -> Optional[str]:
    """cpu and cuda only: elsewhere the fused kernel may be absent and torch would fall back without a word."""
    return None if query.device.type in ("cpu", "cuda") else f"runs on cpu and cuda, not on {query.device.type}"


def packed(
    q_TND: torch.Tensor, k_TGD: torch.Tensor, v_TGD: torch.Tensor, cu_seqlens: Sequence[int], scale: float
) -> torch.Tensor:
    """One causal call per document, so work and memory follow the documents, not the pack; see api.packed_attention."""
    grouped = q_TND.shape[1] != k_TGD.shape[1]
    outputs = []
    for start, stop in zip(cu_seqlens[:-1], cu_seqlens[1:]):
        if stop == start:
            continue
        q_1NLD, k_1GLD, v_1GLD = (x[start:stop].transpose(0, 1).unsqueeze(0) for x in (q_TND, k_TGD, v_TGD))
        out_1NLD = F.scaled_dot_product_attention(q_1NLD, k_1GLD, v_1GLD, is_causal=True, scale=scale, enable_gqa=grouped)
        outputs.append(out_1NLD.squeeze(0).transpose(0, 1))
    return torch.cat(outputs)


def tiles(q_BPND: torch.Tensor, k_BPND: torch.Tensor, v_BPND: torch.Tensor, scale: float) -> torch.Tensor:
    """Bidirectional attention inside each tile; see api.tile_attention."""
    q_BNPD, k_BNPD, v_BNPD = (x.transpose(1, 2) for x in (q_BPND, k_BPND, v_BPND))
    return F.scaled_dot_product_attention(q_BNPD, k_BNPD, v_BNPD, scale=scale).transpose(1, 2)


_cpu_flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_cpu_flash_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


def refuse_blocks(query: torch.Tensor) -> Optional[str]:
    """Only the CPU's kernel is wired up for blocks: it takes fp32, bf16 and fp16, grouped queries and unequal lengths."""
    return None if query.device.type == "cpu" else f"its blocks run on cpu, not on {query.device.type}"


def blocks_forward(
    q_TND: torch.Tensor, k_SGD: torch.Tensor, v_SGD: torch.Tensor, segments: np.ndarray, *, causal: bool, scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """See blocks.BlockKernels. The kernel's causal mask is top-left; causal segments are square, so that is the diagonal."""
    outs, lses = [], []
    for q0, q1, k0, k1 in segments.tolist():
        out, lse = _cpu_flash(_heads_first(q_TND[q0:q1]), _heads_first(k_SGD[k0:k1]), _heads_first(v_SGD[k0:k1]), 0.0, causal, scale=scale)
        outs.append(out.squeeze(0).transpose(0, 1))
        lses.append(lse.squeeze(0).transpose(0, 1))
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
    """See blocks.BlockKernels."""
    for q0, q1, k0, k1 in segments.tolist():
        grad, query, out = (_heads_first(x[q0:q1]) for x in (grad_TND, q_TND, out_TND))
        key, value = _heads_first(k_SGD[k0:k1]), _heads_first(v_SGD[k0:k1])
        lse = lse_TN[q0:q1].transpose(0, 1).unsqueeze(0)
        dq, dk, dv = _cpu_flash_backward(grad, query, key, value, out, lse, 0.0, causal, scale=scale)
        dq_TND[q0:q1] += dq.squeeze(0).transpose(0, 1)
        dkv_2SGD[0, k0:k1] += dk.squeeze(0).transpose(0, 1)
        dkv_2SGD[1, k0:k1] += dv.squeeze(0).transpose(0, 1)


def _heads_first(x_TND: torch.Tensor) -> torch.Tensor:
    return x_TND.transpose(0, 1).unsqueeze(0)
