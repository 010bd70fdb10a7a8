"""Attention on CUDA by torch's own kernels that return the log-sum-exp: flash for bf16 and fp16, memory-efficient for fp32.

Not run on CUDA hardware so far: the calls are checked against torch's schemas and shapes, and against emulated kernels.
Shapes as in registry.py.
"""

from __future__ import annotations

from typing import Optional

import numpy as np
import torch
import torch.nn.functional as F

from mindspeed_vita.ops.attention.blocks import PackedSegments
from mindspeed_vita.ops.attention.varlen import varlen_backward, varlen_forward

_FLASH_DTYPES = (torch.bfloat16, torch.float16)
_OLDEST_FLASH = (8, 0)
_WIDEST = 256
_EFFICIENT_ROWS = 32
"""The memory-efficient kernel keeps its log-sum-exp in rows of a multiple of this."""
_NO_MASK, _CAUSAL_FROM_TOP_LEFT = 0, 1


def refuse(query: torch.Tensor) -> Optional[str]:
    """Takes widths that are multiples of 8 up to 256, in fp32, and in bf16 and fp16 where the device can run flash kernels."""
    if query.device.type != "cuda":
        return f"runs on cuda, not on {query.device.type}"
    return _refuse_shape(query) or (refuse_old_device(query.device) if query.dtype in _FLASH_DTYPES else None)


def refuse_old_device(device: torch.device) -> Optional[str]:
    """Why a CUDA device cannot run flash kernels, which would say so in the middle of a step only; None if it can."""
    found = torch.cuda.get_device_capability(device)
    if found >= _OLDEST_FLASH:
        return None
    name = torch.cuda.get_device_name(device)
    return f"flash kernels need compute capability {'.'.join(map(str, _OLDEST_FLASH))} or newer, {name} has {'.'.join(map(str, found))}"


def _refuse_shape(query: torch.Tensor) -> Optional[str]:
    if query.dtype not in (*_FLASH_DTYPES, torch.float32):
        return f"takes bf16, fp16 and fp32, not {query.dtype}"
    width = query.shape[-1]
    return f"takes head widths that are multiples of 8 up to {_WIDEST}, not {width}" if width % 8 or width > _WIDEST else None


def tiles(q_BPND: torch.Tensor, k_BPND: torch.Tensor, v_BPND: torch.Tensor, scale: float) -> torch.Tensor:
    """Bidirectional attention inside each tile; see api.tile_attention."""
    q_BNPD, k_BNPD, v_BNPD = (x.transpose(1, 2) for x in (q_BPND, k_BPND, v_BPND))
    return F.scaled_dot_product_attention(q_BNPD, k_BNPD, v_BNPD, scale=scale).transpose(1, 2)


def blocks_forward(
    q_TND: torch.Tensor, k_SGD: torch.Tensor, v_SGD: torch.Tensor, segments: np.ndarray, *, causal: bool, scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """See registry.Backend."""
    if q_TND.dtype in _FLASH_DTYPES:
        return varlen_forward(_Flash(), q_TND, k_SGD, v_SGD, segments, causal=causal, scale=scale)
    outs, lses = [], []
    for q0, q1, k0, k1 in segments.tolist():
        out, lse = _efficient_forward(q_TND[q0:q1], k_SGD[k0:k1], v_SGD[k0:k1], causal, scale)
        outs.append(out)
        lses.append(lse)
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
    """See registry.Backend."""
    if q_TND.dtype in _FLASH_DTYPES:
        tensors = (grad_TND, q_TND, k_SGD, v_SGD, out_TND, lse_TN)
        varlen_backward(_Flash(), *tensors, segments, causal=causal, scale=scale, dq_TND=dq_TND, dkv_2SGD=dkv_2SGD)
        return
    for q0, q1, k0, k1 in segments.tolist():
        grad, query, out, lse = (x[q0:q1] for x in (grad_TND, q_TND, out_TND, lse_TN))
        dq, dk, dv = _efficient_backward(grad, query, k_SGD[k0:k1], v_SGD[k0:k1], out, lse, causal, scale)
        dq_TND[q0:q1] += dq
        dkv_2SGD[0, k0:k1] += dk
        dkv_2SGD[1, k0:k1] += dv


class _Flash:
    """torch's flash kernel over variable lengths; grouped queries are its own."""

    def forward(
        self, q_QND: torch.Tensor, k_KGD: torch.Tensor, v_KGD: torch.Tensor, packed: PackedSegments, *, causal: bool, scale: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        out, lse_NQ, *_ = torch.ops.aten._flash_attention_forward(
            q_QND,
            k_KGD,
            v_KGD,
            packed.cu_query,
            packed.cu_key,
            packed.longest_query,
            packed.longest_key,
            0.0,
            causal,
            False,
            scale=scale,
        )
        return out, lse_NQ

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
        unused_rng_state = torch.empty(2, dtype=torch.uint64, device=q_QND.device)  # of dropout, which is 0
        return torch.ops.aten._flash_attention_backward(
            grad_QND,
            q_QND,
            k_KGD,
            v_KGD,
            out_QND,
            lse_NQ,
            packed.cu_query,
            packed.cu_key,
            packed.longest_query,
            packed.longest_key,
            0.0,
            causal,
            unused_rng_state,
            torch.empty(0, dtype=torch.uint64, device=q_QND.device),
            scale=scale,
        )


def _efficient_forward(
    q_QND: torch.Tensor, k_KGD: torch.Tensor, v_KGD: torch.Tensor, causal: bool, scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """out_QND and log-sum-exp [Q, N] of one segment. The kernel knows no grouped queries: keys are repeated."""
    keys, values = (_repeat(x, q_QND.shape[1]) for x in (k_KGD, v_KGD))
    mask = _CAUSAL_FROM_TOP_LEFT if causal else _NO_MASK
    out, lse_1NR, *_ = torch.ops.aten._efficient_attention_forward(
        q_QND.unsqueeze(0), keys, values, None, None, None, None, None, 0.0, mask, True, scale=scale
    )
    return out.squeeze(0), lse_1NR[0, :, : len(q_QND)].transpose(0, 1)


def _efficient_backward(
    grad_QND: torch.Tensor,
    q_QND: torch.Tensor,
    k_KGD: torch.Tensor,
    v_KGD: torch.Tensor,
    out_QND: torch.Tensor,
    lse_QN: torch.Tensor,
    causal: bool,
    scale: float,
) -> tuple[torch.Tensor, ...]:
    heads, kv_heads = q_QND.shape[1], k_KGD.shape[1]
    keys, values = (_repeat(x, heads) for x in (k_KGD, v_KGD))
    rows = -len(q_QND) % _EFFICIENT_ROWS
    lse_1NR = F.pad(lse_QN.transpose(0, 1), (0, rows), value=float("inf")).unsqueeze(0).contiguous()
    unused = torch.empty((), dtype=torch.long, device=q_QND.device)  # seed and offset of dropout, which is 0
    dq, dk, dv, _ = torch.ops.aten._efficient_attention_backward(
        grad_QND.unsqueeze(0).contiguous(),
        q_QND.unsqueeze(0),
        keys,
        values,
        None,
        out_QND.unsqueeze(0),
        None,
        None,
        len(q_QND),
        len(k_KGD),
        lse_1NR,
        0.0,
        unused,
        unused,
        _CAUSAL_FROM_TOP_LEFT if causal else _NO_MASK,
        False,
        scale=scale,
    )
    dk, dv = (x.squeeze(0).unflatten(1, (kv_heads, heads // kv_heads)).sum(2) for x in (dk, dv))
    return dq.squeeze(0), dk, dv


def _repeat(x_KGD: torch.Tensor, heads: int) -> torch.Tensor:
    return x_KGD.repeat_interleave(heads // x_KGD.shape[1], dim=1).unsqueeze(0)
