"""Attention on Hopper and Blackwell GPUs by FlashAttention-4 (flash-attn-4, module flash_attn.cute). Not run on CUDA hardware so far.

The calls follow flash_attn/cute/interface.py of Dao-AILab/flash-attention. Shapes as in registry.py.
"""

from __future__ import annotations

from functools import lru_cache, partial
from typing import Optional

import torch

from mindspeed_vita.ops.attention.blocks import PackedSegments, merge_
from mindspeed_vita.ops.attention.call import Blocks, Heads, Upstream
from mindspeed_vita.ops.attention.package_check import refuse_heads, refuse_package
from mindspeed_vita.ops.attention.paged import Paged, gathered
from mindspeed_vita.ops.attention.varlen import varlen_backward, varlen_forward

__all__ = ["blocks_backward", "blocks_forward", "merge_", "paged_forward", "refuse", "tiles"]

_GENERATIONS = (9, 10, 11, 12)
"""Major compute capabilities whose backward pass exists."""
_BLACKWELL = (10, 11)
_BLACKWELL_WIDEST, _BLACKWELL_SPECIAL = 128, 256
"""On these, widths up to the first, and the second by a kernel of its own."""
_LENGTHS = ("cu_seqlens_q", "cu_seqlens_k", "max_seqlen_q", "max_seqlen_k", "softmax_scale", "causal")
_PASSED = {"_flash_attn_fwd": (*_LENGTHS, "return_lse"), "_flash_attn_bwd": _LENGTHS, "flash_attn_func": ("softmax_scale", "causal")}


def refuse(heads: Heads) -> Optional[str]:
    """Takes bf16 and fp16, widths that are multiples of 8 up to 256 (on Blackwell up to 128, or 256), from capability 9.0 on."""
    if reason := refuse_heads(heads.dtype, heads.width) or _refuse_installation():
        return reason
    return _refuse_device(heads) if heads.device.type == "cuda" else None


@lru_cache(maxsize=1)
def _refuse_installation() -> Optional[str]:
    return refuse_package("flash-attn-4", "flash_attn.cute.interface", arguments=_PASSED)


def _refuse_device(heads: Heads) -> Optional[str]:
    major, minor = torch.cuda.get_device_capability(heads.device)
    name = torch.cuda.get_device_name(heads.device)
    if major not in _GENERATIONS:
        return f"its backward pass is for compute capabilities {', '.join(map(str, _GENERATIONS))}, {name} has {major}.{minor}"
    if major in _BLACKWELL and heads.width > _BLACKWELL_WIDEST and heads.width != _BLACKWELL_SPECIAL:
        return f"takes head widths up to {_BLACKWELL_WIDEST}, and {_BLACKWELL_SPECIAL}, on {name}, not {heads.width}"
    return None


def tiles(q_BPND: torch.Tensor, k_BPND: torch.Tensor, v_BPND: torch.Tensor, scale: float) -> torch.Tensor:
    """Bidirectional attention inside each tile; see api.tile_attention."""
    from flash_attn.cute.interface import flash_attn_func

    found = flash_attn_func(q_BPND, k_BPND, v_BPND, softmax_scale=scale, causal=False)
    return found[0] if isinstance(found, tuple) else found  # releases differ in whether the log-sum-exp comes, too


def paged_forward(paged: Paged) -> tuple[torch.Tensor, torch.Tensor]:
    """See registry.Backend. The sizes of blocks that its cache calls take differ by release: the keys are copied together first."""
    return blocks_forward(gathered(paged))


class _FlashAttn4:
    """The package's functions below its autograd: the public ones do not take a log-sum-exp back."""

    def forward(self, rows: Blocks, packed: PackedSegments) -> tuple[torch.Tensor, torch.Tensor]:
        from flash_attn.cute.interface import _flash_attn_fwd

        out, lse_NQ, *_ = _flash_attn_fwd(
            rows.q_TND,
            rows.k_SGD,
            rows.v_SGD,
            cu_seqlens_q=packed.cu_query,
            cu_seqlens_k=packed.cu_key,
            max_seqlen_q=packed.longest_query,
            max_seqlen_k=packed.longest_key,
            softmax_scale=rows.scale,
            causal=rows.causal,
            return_lse=True,
        )
        return out, lse_NQ

    def backward(
        self, rows: Blocks, upstream: Upstream, lse_NQ: torch.Tensor, packed: PackedSegments
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        from flash_attn.cute.interface import _flash_attn_bwd

        dq, dk, dv, *_ = _flash_attn_bwd(
            rows.q_TND,
            rows.k_SGD,
            rows.v_SGD,
            upstream.out_TND,
            upstream.grad_TND,
            lse_NQ,
            cu_seqlens_q=packed.cu_query,
            cu_seqlens_k=packed.cu_key,
            max_seqlen_q=packed.longest_query,
            max_seqlen_k=packed.longest_key,
            softmax_scale=rows.scale,
            causal=rows.causal,
        )
        return dq, dk, dv


blocks_forward = partial(varlen_forward, _FlashAttn4())
blocks_backward = partial(varlen_backward, _FlashAttn4())
