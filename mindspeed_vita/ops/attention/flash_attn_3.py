"""Attention on Hopper GPUs by FlashAttention-3 (package flash_attn_3, module flash_attn_interface). Not run on CUDA hardware so far.

The calls follow hopper/flash_attn_interface.py of Dao-AILab/flash-attention. Shapes as in registry.py.
"""

from __future__ import annotations

import importlib
import importlib.util
from functools import lru_cache, partial
from typing import Any, Optional

import torch

from mindspeed_vita.ops.attention.blocks import PackedSegments, merge_
from mindspeed_vita.ops.attention.call import Blocks, Heads, Upstream
from mindspeed_vita.ops.attention.package_check import refuse_heads, refuse_package
from mindspeed_vita.ops.attention.paged import Paged, gathered
from mindspeed_vita.ops.attention.varlen import varlen_backward, varlen_forward

__all__ = ["blocks_backward", "blocks_forward", "merge_", "paged_forward", "refuse", "tiles"]

_HOPPER = 9
_BUILT_WIDTHS = (64, 96, 128, 192, 256)
"""Widths that a build may leave out. A head of another width takes the next larger one."""
_NEEDED = {"VARLEN": "a pack of documents", "BACKWARD": "training"}
"""Parts of a build that training needs, and what for."""


def refuse(heads: Heads) -> Optional[str]:
    """Takes bf16 and fp16, widths that are multiples of 8 up to 256, on devices of compute capability 9, from a build that has them."""
    if reason := refuse_heads(heads.dtype, heads.width) or _refuse_installation():
        return reason
    if reason := _refuse_build(heads):
        return reason
    return _refuse_device(heads.device) if heads.device.type == "cuda" else None


@lru_cache(maxsize=1)
def _refuse_installation() -> Optional[str]:
    return refuse_package("flash_attn_3", "flash_attn_interface")


def _refuse_build(heads: Heads) -> Optional[str]:
    flags = _build_flags()
    for part, purpose in _NEEDED.items():
        if flags.get(f"FLASHATTENTION_DISABLE_{part}"):
            return f"was built without {part.lower()}, which {purpose} needs"
    if heads.dtype is torch.float16 and flags.get("FLASHATTENTION_DISABLE_FP16"):
        return "was built without fp16"
    if all(flags.get(f"FLASHATTENTION_DISABLE_HDIM{width}") for width in _BUILT_WIDTHS if width >= heads.width):
        return f"was built without head widths of {heads.width} or more"
    return None


def _build_flags() -> dict[str, bool]:
    """What the build left out. Builds without flash_attn_config do not say."""
    if importlib.util.find_spec("flash_attn_config") is None:
        return {}
    return dict(importlib.import_module("flash_attn_config").CONFIG["build_flags"])


def _refuse_device(device: torch.device) -> Optional[str]:
    major, minor = torch.cuda.get_device_capability(device)
    if major == _HOPPER:
        return None
    return f"its kernels are for compute capability {_HOPPER}, {torch.cuda.get_device_name(device)} has {major}.{minor}"


def tiles(q_BPND: torch.Tensor, k_BPND: torch.Tensor, v_BPND: torch.Tensor, scale: float) -> torch.Tensor:
    """Bidirectional attention inside each tile; see api.tile_attention."""
    from flash_attn_interface import flash_attn_func

    found = flash_attn_func(q_BPND, k_BPND, v_BPND, softmax_scale=scale, causal=False)
    return found[0] if isinstance(found, tuple) else found  # releases before 2025-09 return the log-sum-exp, too


def paged_forward(paged: Paged) -> tuple[torch.Tensor, torch.Tensor]:
    """See registry.Backend. Decoding takes the package's call for caches, where the build has it."""
    sequences = paged.sequences
    if len(sequences.tables) != len(paged.q_TND) or _build_flags().get("FLASHATTENTION_DISABLE_PAGEDKV"):
        return blocks_forward(gathered(paged))
    from flash_attn_interface import flash_attn_with_kvcache

    out_B1ND, lse_BN1, *_ = flash_attn_with_kvcache(
        paged.q_TND.unsqueeze(1).contiguous(),
        paged.k_BSGD,
        paged.v_BSGD,
        cache_seqlens=sequences.lengths_on_device,
        page_table=sequences.block_table,
        softmax_scale=paged.scale,
        causal=False,
        return_softmax_lse=True,
    )
    return out_B1ND.squeeze(1), lse_BN1.squeeze(-1)


class _FlashAttn3:
    """The package's operators below its autograd.

    The arguments up to `causal` are passed by position: their order is that of every release, and their names and defaults are not.
    """

    def forward(self, rows: Blocks, packed: PackedSegments) -> tuple[torch.Tensor, torch.Tensor]:
        from flash_attn_interface import _flash_attn_forward

        new_keys: list[Any] = [None] * 4  # k_new, v_new, qv, out
        cached: list[Any] = [None] * 9  # page_table, kv_batch_idx, leftpad_k, rotary tables and their lengths, factors of fp8
        out, lse_NQ, *_ = _flash_attn_forward(
            rows.q_TND,
            rows.k_SGD,
            rows.v_SGD,
            *new_keys,
            packed.cu_query,
            packed.cu_key,
            None,  # cu_seqlens_k_new
            None,  # seqused_q
            None,  # seqused_k
            packed.longest_query,
            packed.longest_key,
            *cached,
            rows.scale,
            rows.causal,
        )
        return out, lse_NQ

    def backward(
        self, rows: Blocks, upstream: Upstream, lse_NQ: torch.Tensor, packed: PackedSegments
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        from flash_attn_interface import _flash_attn_backward

        dq, dk, dv = torch.empty_like(rows.q_TND), torch.empty_like(rows.k_SGD), torch.empty_like(rows.v_SGD)
        _flash_attn_backward(
            upstream.grad_TND,
            rows.q_TND,
            rows.k_SGD,
            rows.v_SGD,
            upstream.out_TND,
            lse_NQ,
            packed.cu_query,
            packed.cu_key,
            None,  # sequed_q
            None,  # sequed_k
            packed.longest_query,
            packed.longest_key,
            dq,
            dk,
            dv,
            rows.scale,
            rows.causal,
        )
        return dq, dk, dv


blocks_forward = partial(varlen_forward, _FlashAttn3())
blocks_backward = partial(varlen_backward, _FlashAttn3())
