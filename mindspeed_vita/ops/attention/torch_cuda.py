"""Attention on CUDA by torch's own kernels that return the log-sum-exp: flash for bf16 and fp16, memory-efficient for fp32.

Not run on CUDA hardware so far: the calls are checked against torch's schemas and shapes, and against emulated kernels.
Shapes as in registry.py.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Optional

import torch
import torch.nn.functional as F

from mindspeed_vita.ops.attention.blocks import PackedSegments, merge_
from mindspeed_vita.ops.attention.call import Blocks, Heads, Upstream
from mindspeed_vita.ops.attention.paged import Paged, gathered
from mindspeed_vita.ops.attention.varlen import varlen_backward, varlen_forward

__all__ = ["blocks_backward", "blocks_forward", "merge_", "paged_forward", "refuse", "tiles"]

_FLASH_DTYPES = (torch.bfloat16, torch.float16)
_OLDEST_FLASH = (8, 0)
_WIDEST = 256
_EFFICIENT_ROWS = 32
"""The memory-efficient kernel keeps its log-sum-exp in rows of a multiple of this."""
_NO_MASK, _CAUSAL_FROM_TOP_LEFT = 0, 1


def refuse(heads: Heads) -> Optional[str]:
    """Takes widths that are multiples of 8 up to 256, in fp32, and in bf16 and fp16 where the device can run flash kernels."""
    if heads.device.type != "cuda":
        return f"runs on cuda, not on {heads.device.type}"
    return _refuse_shape(heads) or (refuse_old_device(heads.device) if heads.dtype in _FLASH_DTYPES else None)


def refuse_old_device(device: torch.device) -> Optional[str]:
    """Why a CUDA device cannot run flash kernels, which would say so in the middle of a step only; None if it can."""
    found = torch.cuda.get_device_capability(device)
    if found >= _OLDEST_FLASH:
        return None
    name = torch.cuda.get_device_name(device)
    return f"flash kernels need compute capability {'.'.join(map(str, _OLDEST_FLASH))} or newer, {name} has {'.'.join(map(str, found))}"


def _refuse_shape(heads: Heads) -> Optional[str]:
    if heads.dtype not in (*_FLASH_DTYPES, torch.float32):
        return f"takes bf16, fp16 and fp32, not {heads.dtype}"
    width = heads.width
    return f"takes head widths that are multiples of 8 up to {_WIDEST}, not {width}" if width % 8 or width > _WIDEST else None


def tiles(q_BPND: torch.Tensor, k_BPND: torch.Tensor, v_BPND: torch.Tensor, scale: float) -> torch.Tensor:
    """Bidirectional attention inside each tile; see api.tile_attention."""
    q_BNPD, k_BNPD, v_BNPD = (x.transpose(1, 2) for x in (q_BPND, k_BPND, v_BPND))
    return F.scaled_dot_product_attention(q_BNPD, k_BNPD, v_BNPD, scale=scale).transpose(1, 2)


def blocks_forward(blocks: Blocks) -> tuple[torch.Tensor, torch.Tensor]:
    """See registry.Backend."""
    if blocks.q_TND.dtype in _FLASH_DTYPES:
        return varlen_forward(_Flash(), blocks)
    outs, lses = [], []
    for q0, q1, k0, k1 in blocks.segments.tolist():
        out, lse = _efficient_forward(_block(blocks, q0, q1, k0, k1))
        outs.append(out)
        lses.append(lse)
    return torch.cat(outs), torch.cat(lses)


def blocks_backward(blocks: Blocks, upstream: Upstream, *, dq_TND: torch.Tensor, dkv_2SGD: torch.Tensor) -> None:
    """See registry.Backend."""
    if blocks.q_TND.dtype in _FLASH_DTYPES:
        varlen_backward(_Flash(), blocks, upstream, dq_TND=dq_TND, dkv_2SGD=dkv_2SGD)
        return
    for q0, q1, k0, k1 in blocks.segments.tolist():
        grad, out, lse = (x[q0:q1] for x in (upstream.grad_TND, upstream.out_TND, upstream.lse_TN))
        dq, dk, dv = _efficient_backward(_block(blocks, q0, q1, k0, k1), Upstream(grad_TND=grad, out_TND=out, lse_TN=lse))
        dq_TND[q0:q1] += dq
        dkv_2SGD[0, k0:k1] += dk
        dkv_2SGD[1, k0:k1] += dv


def paged_forward(paged: Paged) -> tuple[torch.Tensor, torch.Tensor]:
    """See registry.Backend. torch has no kernel over blocks: the keys are copied together first."""
    return blocks_forward(gathered(paged))


class _Flash:
    """torch's flash kernel over variable lengths; grouped queries are its own."""

    def forward(self, rows: Blocks, packed: PackedSegments) -> tuple[torch.Tensor, torch.Tensor]:
        out, lse_NQ, *_ = torch.ops.aten._flash_attention_forward(
            rows.q_TND,
            rows.k_SGD,
            rows.v_SGD,
            packed.cu_query,
            packed.cu_key,
            packed.longest_query,
            packed.longest_key,
            0.0,
            rows.causal,
            False,
            scale=rows.scale,
        )
        return out, lse_NQ

    def backward(
        self, rows: Blocks, upstream: Upstream, lse_NQ: torch.Tensor, packed: PackedSegments
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        device = rows.q_TND.device
        unused_rng_state = torch.empty(2, dtype=torch.uint64, device=device)  # of dropout, which is 0
        return torch.ops.aten._flash_attention_backward(
            upstream.grad_TND,
            rows.q_TND,
            rows.k_SGD,
            rows.v_SGD,
            upstream.out_TND,
            lse_NQ,
            packed.cu_query,
            packed.cu_key,
            packed.longest_query,
            packed.longest_key,
            0.0,
            rows.causal,
            unused_rng_state,
            torch.empty(0, dtype=torch.uint64, device=device),
            scale=rows.scale,
        )


def _block(blocks: Blocks, q0: int, q1: int, k0: int, k1: int) -> Blocks:
    """The rows of one segment alone."""
    return replace(blocks, q_TND=blocks.q_TND[q0:q1], k_SGD=blocks.k_SGD[k0:k1], v_SGD=blocks.v_SGD[k0:k1])


def _efficient_forward(block: Blocks) -> tuple[torch.Tensor, torch.Tensor]:
    """out_QND and log-sum-exp [Q, N] of one segment. The kernel knows no grouped queries: keys are repeated."""
    q_QND = block.q_TND
    keys, values = (_repeat(x, q_QND.shape[1]) for x in (block.k_SGD, block.v_SGD))
    mask = _CAUSAL_FROM_TOP_LEFT if block.causal else _NO_MASK
    out, lse_1NR, *_ = torch.ops.aten._efficient_attention_forward(
        q_QND.unsqueeze(0), keys, values, None, None, None, None, None, 0.0, mask, True, scale=block.scale
    )
    return out.squeeze(0), lse_1NR[0, :, : len(q_QND)].transpose(0, 1)


def _efficient_backward(block: Blocks, upstream: Upstream) -> tuple[torch.Tensor, ...]:
    q_QND, k_KGD = block.q_TND, block.k_SGD
    heads, kv_heads = q_QND.shape[1], k_KGD.shape[1]
    keys, values = (_repeat(x, heads) for x in (k_KGD, block.v_SGD))
    rows = -len(q_QND) % _EFFICIENT_ROWS
    lse_1NR = F.pad(upstream.lse_TN.transpose(0, 1), (0, rows), value=float("inf")).unsqueeze(0).contiguous()
    unused = torch.empty((), dtype=torch.long, device=q_QND.device)  # seed and offset of dropout, which is 0
    dq, dk, dv, _ = torch.ops.aten._efficient_attention_backward(
        upstream.grad_TND.unsqueeze(0).contiguous(),
        q_QND.unsqueeze(0),
        keys,
        values,
        None,
        upstream.out_TND.unsqueeze(0),
        None,
        None,
        len(q_QND),
        len(k_KGD),
        lse_1NR,
        0.0,
        unused,
        unused,
        _CAUSAL_FROM_TOP_LEFT if block.causal else _NO_MASK,
        False,
        scale=block.scale,
    )
    dk, dv = (x.squeeze(0).unflatten(1, (kv_heads, heads // kv_heads)).sum(2) for x in (dk, dv))
    return dq.squeeze(0), dk, dv


def _repeat(x_KGD: torch.Tensor, heads: int) -> torch.Tensor:
    return x_KGD.repeat_interleave(heads // x_KGD.shape[1], dim=1).unsqueeze(0)
