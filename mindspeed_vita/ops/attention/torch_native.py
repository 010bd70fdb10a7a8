"""Attention on a CPU by torch's own flash kernel, which returns the log-sum-exp. Shapes as in registry.py."""

from __future__ import annotations

from typing import Optional

import torch
import torch.nn.functional as F

from mindspeed_vita.ops.attention.blocks import merge_
from mindspeed_vita.ops.attention.call import Blocks, Heads, Upstream

__all__ = ["blocks_backward", "blocks_forward", "merge_", "refuse", "tiles"]


def refuse(heads: Heads) -> Optional[str]:
    """Takes fp32, bf16 and fp16, grouped queries and unequal lengths, on a CPU."""
    return None if heads.device.type == "cpu" else f"runs on cpu, not on {heads.device.type}"


def tiles(q_BPND: torch.Tensor, k_BPND: torch.Tensor, v_BPND: torch.Tensor, scale: float) -> torch.Tensor:
    """Bidirectional attention inside each tile; see api.tile_attention."""
    q_BNPD, k_BNPD, v_BNPD = (x.transpose(1, 2) for x in (q_BPND, k_BPND, v_BPND))
    return F.scaled_dot_product_attention(q_BNPD, k_BNPD, v_BNPD, scale=scale).transpose(1, 2)


_cpu_flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_cpu_flash_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


def blocks_forward(blocks: Blocks) -> tuple[torch.Tensor, torch.Tensor]:
    """See registry.Backend. The kernel's causal mask is top-left; causal segments are square, so that is the diagonal."""
    outs, lses = [], []
    for q0, q1, k0, k1 in blocks.segments.tolist():
        query, key, value = (_heads_first(x) for x in (blocks.q_TND[q0:q1], blocks.k_SGD[k0:k1], blocks.v_SGD[k0:k1]))
        out, lse = _cpu_flash(query, key, value, 0.0, blocks.causal, scale=blocks.scale)
        outs.append(out.squeeze(0).transpose(0, 1))
        lses.append(lse.squeeze(0).transpose(0, 1))
    return torch.cat(outs), torch.cat(lses)


def blocks_backward(blocks: Blocks, upstream: Upstream, *, dq_TND: torch.Tensor, dkv_2SGD: torch.Tensor) -> None:
    """See registry.Backend."""
    for q0, q1, k0, k1 in blocks.segments.tolist():
        grad, query, out = (_heads_first(x[q0:q1]) for x in (upstream.grad_TND, blocks.q_TND, upstream.out_TND))
        key, value = _heads_first(blocks.k_SGD[k0:k1]), _heads_first(blocks.v_SGD[k0:k1])
        lse = upstream.lse_TN[q0:q1].transpose(0, 1).unsqueeze(0)
        dq, dk, dv = _cpu_flash_backward(grad, query, key, value, out, lse, 0.0, blocks.causal, scale=blocks.scale)
        dq_TND[q0:q1] += dq.squeeze(0).transpose(0, 1)
        dkv_2SGD[0, k0:k1] += dk.squeeze(0).transpose(0, 1)
        dkv_2SGD[1, k0:k1] += dv.squeeze(0).transpose(0, 1)


def _heads_first(x_TND: torch.Tensor) -> torch.Tensor:
    return x_TND.transpose(0, 1).unsqueeze(0)
