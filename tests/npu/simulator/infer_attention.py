"""npu_fused_infer_attention_score over blocks of a cache as its documentation describes it: layout TND, no mask, with its log-sum-exp.

Shapes: T tokens, N query heads, G key heads, D width, B blocks, S tokens of a block. Arithmetic in fp32.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any, Optional

import torch

from tests.npu.simulator.contract import demand
from tests.npu.simulator.device import KERNELS, Ascend

_USUAL = {
    **dict.fromkeys(("pse_shift", "atten_mask", "query_padding_size", "kv_padding_size", "key_shared_prefix", "value_shared_prefix")),
    **dict.fromkeys(("query_rope", "key_rope", "antiquant_scale", "quant_scale1", "dequant_scale1", "actual_shared_prefix_len")),
    "sparse_mode": 0,
    "inner_precise": 0,
}


def npu_fused_infer_attention_score(call: dict[str, Any], chip: Ascend) -> tuple[Optional[torch.Tensor], ...]:
    """softmax(scale * q k^T) v over each sequence's blocks, and the log-sum-exp of the scaled scores."""
    _check(call)
    query, (heads, kv_heads) = call["query"].float(), (call["num_heads"], call["num_key_value_heads"])
    key, value = (call[name].float().unflatten(2, (kv_heads, -1)) for name in ("key", "value"))
    out, lse = torch.empty_like(query), torch.empty(*query.shape[:2], 1)
    bounds = [0, *call["actual_seq_lengths"]]
    for (start, stop), table, length in zip(pairwise(bounds), call["block_table"], call["actual_seq_lengths_kv"]):
        blocks = table[: -(-length // call["block_size"])].long()
        demand(bool((blocks < len(key)).all()), "a block outside the cache")
        k_NKD, v_NKD = (
            stored[blocks].flatten(0, 1)[:length].transpose(0, 1).repeat_interleave(heads // kv_heads, dim=0) for stored in (key, value)
        )
        scores_NQK = query[start:stop].transpose(0, 1) @ k_NKD.transpose(1, 2) * call["scale"]
        out[start:stop] = (scores_NQK.softmax(-1) @ v_NKD).transpose(0, 1)
        lse[start:stop, :, 0] = scores_NQK.logsumexp(-1).T
    return out.to(call["query"].dtype), lse


def _check(call: dict[str, Any]) -> None:
    query, key, table, size = call["query"], call["key"], call["block_table"], call["block_size"]
    demand(call["input_layout"] == "TND" and table is not None, "only TND over blocks is simulated")
    for name, usual in _USUAL.items():
        demand(call[name] == usual, f"{name} is not simulated")
    demand(call["softmax_lse_flag"], "without its log-sum-exp a partial result cannot be merged")
    demand(query.dtype in (torch.float16, torch.bfloat16), f"query is {query.dtype}; fp16 or bf16")
    for name in ("query", "key", "value"):
        demand(call[name].dtype == query.dtype, f"{name} is {call[name].dtype}, query {query.dtype}; all alike")
        demand(call[name].is_contiguous(), f"{name} is not contiguous")
    demand(query.dim() == 3 and query.shape[1] == call["num_heads"], "query must be [T, N, D] with num_heads heads")
    demand(query.shape[2] in (64, 128), f"heads of width {query.shape[2]}; TND over blocks takes 64 and 128")
    demand(call["num_heads"] % call["num_key_value_heads"] == 0, "query heads are no multiple of key heads")
    wanted = (size, call["num_key_value_heads"] * query.shape[2])
    demand(key.dim() == 3 and tuple(key.shape[1:]) == wanted == tuple(call["value"].shape[1:]), f"key and value must be [B, {wanted}]")
    demand(size % 128 == 0 and size <= 512, f"blocks of {size} tokens; a multiple of 128 up to 512")
    demand(table.dtype == torch.int32 and table.dim() == 2, "block_table must be int32, [sequences, most blocks]")
    demand(table.simulated.device.type == "npu", "block_table must lie on the device")
    ends, lengths = call["actual_seq_lengths"], call["actual_seq_lengths_kv"]
    demand(ends is not None and len(ends) == len(lengths) == len(table), "as many query and key lengths as rows of the table")
    demand(all(before < after for before, after in pairwise([0, *ends])), "actual_seq_lengths is cumulative in TND, without a leading 0")
    demand(ends[-1] == len(query), f"actual_seq_lengths ends at {ends[-1]}, there are {len(query)} queries")
    demand(all(0 < length <= table.shape[1] * size for length in lengths), "actual_seq_lengths_kv holds each sequence's own length")


KERNELS["npu_fused_infer_attention_score"] = npu_fused_infer_attention_score
