"""Attention on CUDA by the flash-attn package (2.7 or newer), where it is installed. Not run on CUDA hardware so far.

Shapes as in registry.py.
"""

from __future__ import annotations

from functools import lru_cache, partial
from typing import Optional

import torch

from mindspeed_vita.ops.attention.blocks import PackedSegments, merge_
from mindspeed_vita.ops.attention.call import Blocks, Heads, Upstream
from mindspeed_vita.ops.attention.package_check import refuse_heads, refuse_package
from mindspeed_vita.ops.attention.paged import Paged, gathered
from mindspeed_vita.ops.attention.torch_cuda import refuse_old_device
from mindspeed_vita.ops.attention.varlen import varlen_backward, varlen_forward

__all__ = ["blocks_backward", "blocks_forward", "merge_", "paged_forward", "refuse", "tiles"]

_OLDEST = (2, 7)
_PAGE = 256
"""The call for caches takes blocks of a multiple of this many tokens."""


def refuse(heads: Heads) -> Optional[str]:
    """Takes bf16 and fp16, widths that are multiples of 8 up to 256, on devices from compute capability 8.0 on."""
    if reason := refuse_heads(heads.dtype, heads.width) or _refuse_installation():
        return reason
    return refuse_old_device(heads.device) if heads.device.type == "cuda" else None


@lru_cache(maxsize=1)
def _refuse_installation() -> Optional[str]:
    return refuse_package("flash-attn", "flash_attn.flash_attn_interface", oldest=_OLDEST)


def tiles(q_BPND: torch.Tensor, k_BPND: torch.Tensor, v_BPND: torch.Tensor, scale: float) -> torch.Tensor:
    """Bidirectional attention inside each tile; see api.tile_attention."""
    from flash_attn import flash_attn_func

    return flash_attn_func(q_BPND, k_BPND, v_BPND, softmax_scale=scale, causal=False)


def paged_forward(paged: Paged) -> tuple[torch.Tensor, torch.Tensor]:
    """See registry.Backend. Decoding takes the package's call for caches, which splits long keys over the device."""
    sequences = paged.sequences
    if len(sequences.tables) == len(paged.q_TND) and not paged.k_BSGD.shape[1] % _PAGE:
        from flash_attn import flash_attn_with_kvcache

        out_B1ND, lse_BN1 = flash_attn_with_kvcache(
            paged.q_TND.unsqueeze(1).contiguous(),
            paged.k_BSGD,
            paged.v_BSGD,
            cache_seqlens=sequences.lengths_on_device,
            block_table=sequences.block_table,
            softmax_scale=paged.scale,
            causal=False,
            return_softmax_lse=True,
        )
        return out_B1ND.squeeze(1), lse_BN1.squeeze(-1)
    return blocks_forward(gathered(paged))


class _FlashAttn:
    """The package's functions below its autograd: the public ones do not take a log-sum-exp back."""

    def forward(self, rows: Blocks, packed: PackedSegments) -> tuple[torch.Tensor, torch.Tensor]:
        from flash_attn.flash_attn_interface import _flash_attn_varlen_forward

        out, lse_NQ, *_ = _flash_attn_varlen_forward(
            rows.q_TND.contiguous(),
            rows.k_SGD.contiguous(),
            rows.v_SGD.contiguous(),
            cu_seqlens_q=packed.cu_query,
            cu_seqlens_k=packed.cu_key,
            max_seqlen_q=packed.longest_query,
            max_seqlen_k=packed.longest_key,
            dropout_p=0.0,
            softmax_scale=rows.scale,
            causal=rows.causal,
        )
        return out, lse_NQ

    def backward(
        self, rows: Blocks, upstream: Upstream, lse_NQ: torch.Tensor, packed: PackedSegments
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        from flash_attn.flash_attn_interface import _flash_attn_varlen_backward

        dq, dk, dv = torch.empty_like(rows.q_TND), torch.empty_like(rows.k_SGD), torch.empty_like(rows.v_SGD)
        _flash_attn_varlen_backward(
            upstream.grad_TND,
            rows.q_TND,
            rows.k_SGD,
            rows.v_SGD,
            upstream.out_TND,
            lse_NQ,
            dq,
            dk,
            dv,
            cu_seqlens_q=packed.cu_query,
            cu_seqlens_k=packed.cu_key,
            max_seqlen_q=packed.longest_query,
            max_seqlen_k=packed.longest_key,
            dropout_p=0.0,
            softmax_scale=rows.scale,
            causal=rows.causal,
            window_size_left=-1,
            window_size_right=-1,
            softcap=0.0,
            alibi_slopes=None,
            deterministic=False,
        )
        return dq, dk, dv


blocks_forward = partial(varlen_forward, _FlashAttn())
blocks_backward = partial(varlen_backward, _FlashAttn())
