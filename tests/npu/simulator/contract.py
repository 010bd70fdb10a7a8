"""What the documentation of torch_npu's fused operators demands of a call, and the chip would reject or get wrong without a word."""

from __future__ import annotations

from itertools import pairwise
from typing import Any, Optional, Sequence

import torch

FLOATS = (torch.float16, torch.bfloat16, torch.float32)
COMPRESSED = 2048
"""Rows and columns of the mask that stands for causal attention of any length."""
_MAX_TOKENS = 1 << 20
_MAX_SEQUENCES = 1024
_MAX_HEADS = 256
_MAX_WIDTH = 768


class BrokenContract(RuntimeError):
    """A call that the documentation does not allow."""


def demand(holds: bool, what: str) -> None:
    """Refuse a call unless a condition holds.

    Raises:
        BrokenContract: it does not.
    """
    if not holds:
        raise BrokenContract(what)


def check_attention(call: dict[str, Any]) -> None:
    """Inputs of npu_fusion_attention and of its gradient."""
    query, key, value = call["query"], call["key"], call["value"]
    layout, heads = call["input_layout"], call["head_num"]
    demand(layout in ("TND", "BSND"), f"layout {layout} is not simulated; TND and BSND are")
    for name in ("query", "key", "value"):
        tensor = call[name]
        demand(tensor.dtype == query.dtype and tensor.dtype in FLOATS, f"{name} is {tensor.dtype}; fp16, bf16 or fp32, all alike")
        demand(tensor.is_contiguous(), f"{name} is not contiguous")
        demand(1 <= tensor.shape[-1] <= _MAX_WIDTH, f"{name} has heads of width {tensor.shape[-1]}, beyond 1 to {_MAX_WIDTH}")
    demand(key.shape == value.shape, "key and value differ in shape")
    demand(query.shape[-2] == heads <= _MAX_HEADS, f"head_num={heads}, query has {query.shape[-2]} heads, at most {_MAX_HEADS}")
    demand(heads % key.shape[-2] == 0, f"{heads} query heads are no multiple of {key.shape[-2]} key heads")
    for name, usual in (("pse", None), ("padding_mask", None), ("keep_prob", 1.0), ("prefix", None), ("sink", None), ("inner_precise", 0)):
        demand(call[name] == usual, f"{name} is not simulated")
    demand(call["softmax_layout"] in ("", "TND") if layout == "TND" else call["softmax_layout"] == "", "softmax_layout is for TND only")
    if layout == "TND":
        _check_ends("actual_seq_qlen", call["actual_seq_qlen"], query.shape[0])
        _check_ends("actual_seq_kvlen", call["actual_seq_kvlen"], key.shape[0])
        demand(len(call["actual_seq_qlen"]) == len(call["actual_seq_kvlen"]), "as many query as key sequences")


def check_mask(call: dict[str, Any], lengths: Sequence[tuple[int, int]]) -> None:
    """Mask and sparse mode. Without a mask every mode means full attention, which is legal, and a trap."""
    mask, mode = call["atten_mask"], call["sparse_mode"]
    if mask is None:
        return
    demand(mask.dtype in (torch.bool, torch.uint8), f"atten_mask is {mask.dtype}; bool or uint8")
    demand(mode in (0, 1, 2, 3), f"sparse_mode {mode} is not simulated")
    if mode in (2, 3):
        _check_compressed(mask)
    elif call["input_layout"] == "TND":
        demand(mask.dim() == 2, "a mask for TND has two dimensions")
    if mode == 3:
        demand(all(rows <= keys for rows, keys in lengths), "sparse_mode 3 with more queries than keys masks whole rows")


def check_statistics(call: dict[str, Any], shape: tuple[int, ...]) -> None:
    """Softmax statistics and the forward's output, as the gradient takes them."""
    for name in ("softmax_max", "softmax_sum"):
        tensor = call[name]
        demand(tensor is not None and tuple(tensor.shape) == shape, f"{name} must have the shape {shape}")
        demand(tensor.dtype == torch.float32 and tensor.is_contiguous(), f"{name} must be contiguous fp32")
        demand(bool((tensor == tensor[..., :1]).all()), f"{name} does not repeat its value 8 times")
    for name in ("dy", "attention_in"):
        tensor = call[name]
        demand(tensor is not None and tensor.shape == call["query"].shape, f"{name} must have the query's shape")
        demand(tensor.dtype == call["query"].dtype and tensor.is_contiguous(), f"{name} must be contiguous and of the query's dtype")


def check_ring_update(call: dict[str, Any]) -> None:
    """Inputs of npu_ring_attention_update, whose cumulative lengths follow the opposite convention."""
    out, ends = call["prev_attn_out"], call["actual_seq_qlen"]
    demand(call["input_layout"] == "TND" and call["input_softmax_layout"] == "TND", "only TND with TND statistics is simulated")
    demand(out.dtype in FLOATS and out.dim() == 3, "prev_attn_out must be fp16, bf16 or fp32, [T, N, D]")
    demand(out.shape[-1] % 64 == 0, f"heads of width {out.shape[-1]}: CANN wants a multiple of 64")
    for name in ("prev_attn_out", "cur_attn_out"):
        demand(call[name].shape == out.shape and call[name].dtype == out.dtype, "both outputs must be alike in shape and dtype")
        demand(call[name].is_contiguous(), f"{name} is not contiguous")
    for name in ("prev_softmax_max", "prev_softmax_sum", "cur_softmax_max", "cur_softmax_sum"):
        tensor = call[name]
        demand(tensor.dtype == torch.float32 and tensor.is_contiguous(), f"{name} must be contiguous fp32")
        demand(tuple(tensor.shape) == (*out.shape[:2], 8), f"{name} must be [T, N, 8]")
    demand(ends is not None and ends.dtype == torch.int64, "actual_seq_qlen must be an int64 tensor")
    demand(ends.simulated.device.type == "npu", "actual_seq_qlen must lie on the device")
    bounds = ends.tolist()
    demand(bounds[0] == 0, "actual_seq_qlen must begin with 0 here")
    demand(bounds[-1] == out.shape[0], f"actual_seq_qlen ends at {bounds[-1]}, there are {out.shape[0]} tokens")
    demand(all(before < after for before, after in pairwise(bounds)), "actual_seq_qlen must grow")


def _check_ends(name: str, ends: Optional[Sequence[int]], tokens: int) -> None:
    demand(ends is not None and len(ends) > 0, f"TND needs {name}")
    assert ends is not None
    demand(len(ends) <= _MAX_SEQUENCES, f"{name} has {len(ends)} sequences, TND takes at most {_MAX_SEQUENCES}")
    demand(ends[0] > 0, f"{name} begins with {ends[0]}; it is cumulative without a leading 0")
    demand(all(before <= after for before, after in pairwise(ends)), f"{name} must not fall")
    demand(ends[-1] == tokens, f"{name} ends at {ends[-1]}, there are {tokens} tokens")
    demand(tokens <= _MAX_TOKENS, f"{tokens} tokens, TND takes at most {_MAX_TOKENS}")


def _check_compressed(mask: torch.Tensor) -> None:
    demand(tuple(mask.shape) == (COMPRESSED, COMPRESSED), f"the compressed mask is {COMPRESSED} x {COMPRESSED}, not {tuple(mask.shape)}")
    owner = mask.simulated  # type: ignore[attr-defined]
    if getattr(owner, "found_causal_at", None) != owner._version:  # four million entries: looked at once
        demand(torch.equal(mask.bool(), torch.ones_like(mask, dtype=torch.bool).triu(1)), "the compressed mask is not causal")
        owner.found_causal_at = owner._version
