"""npu_fusion_attention, its gradient and npu_ring_attention_update as their documentation describes them.

Shapes: T tokens, N query heads, G key heads, D width, S keys of a sequence, Q queries of one. Arithmetic in fp32.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any, Iterator, Optional

import torch

from tests.npu.simulator.contract import check_attention, check_mask, check_ring_update, check_statistics, demand
from tests.npu.simulator.device import KERNELS, Ascend

_Sequence = tuple[slice, slice]


def npu_fusion_attention(call: dict[str, Any], chip: Ascend) -> tuple[Optional[torch.Tensor], ...]:
    """softmax(mask(scale * q k^T)) v with the row maxima and sums."""
    check_attention(call)
    query, key, value, _ = _flattened(call)
    out = torch.empty_like(query)
    top, total = (torch.empty(query.shape[:2]) for _ in range(2))
    for rows, keys in _sequences(call):
        scores_NQS = _scores(query[rows], key[keys], call)
        top_NQ = scores_NQS.amax(-1)
        weights = (scores_NQS - top_NQ.unsqueeze(-1)).exp()
        total_NQ = weights.sum(-1)
        demand(bool(total_NQ.isfinite().all()), "a row without any key")
        out[rows] = (weights / total_NQ.unsqueeze(-1) @ _per_head(value[keys], query.shape[1])).transpose(0, 1)
        top[rows], total[rows] = top_NQ.T, total_NQ.T
    statistics = [_written(values, call, chip) for values in (top, total)]
    return out.to(call["query"].dtype).view(call["query"].shape), *statistics, None, None, None, None


def npu_fusion_attention_grad(call: dict[str, Any], chip: Ascend) -> tuple[Optional[torch.Tensor], ...]:
    """Gradients from the statistics it is given: those of a whole ring make them a ring's part."""
    check_attention(call)
    query, key, value, shape = _flattened(call)
    check_statistics(call, shape)
    grad, out = (call[name].float().reshape(query.shape) for name in ("dy", "attention_in"))
    top, total = (_read(call[name], call, chip) for name in ("softmax_max", "softmax_sum"))
    dq, dk, dv = torch.zeros_like(query), torch.zeros_like(key), torch.zeros_like(value)
    heads = query.shape[1]
    for rows, keys in _sequences(call):
        statistics = [values[rows].T.unsqueeze(-1) for values in (top, total)]
        weights_NQS = (_scores(query[rows], key[keys], call) - statistics[0]).exp() / statistics[1]
        grad_NQD = grad[rows].transpose(0, 1)
        mean = (grad[rows] * out[rows]).sum(-1).T.unsqueeze(-1)
        dscores_NQS = weights_NQS * (grad_NQD @ _per_head(value[keys], heads).transpose(1, 2) - mean) * call["scale_value"]
        dq[rows] = (dscores_NQS @ _per_head(key[keys], heads)).transpose(0, 1)
        dk[keys] = _folded(dscores_NQS.transpose(1, 2) @ query[rows].transpose(0, 1), key.shape[1])
        dv[keys] = _folded(weights_NQS.transpose(1, 2) @ grad_NQD, key.shape[1])
    results = (dq.view(call["query"].shape), dk.view(call["key"].shape), dv.view(call["value"].shape))
    return *(result.to(call["query"].dtype) for result in results), None, None


def npu_ring_attention_update(call: dict[str, Any], chip: Ascend) -> tuple[Optional[torch.Tensor], ...]:
    """Merges two partial results by their statistics."""
    check_ring_update(call)
    top = torch.maximum(call["prev_softmax_max"], call["cur_softmax_max"])
    before = call["prev_softmax_sum"] * (call["prev_softmax_max"] - top).exp()
    now = call["cur_softmax_sum"] * (call["cur_softmax_max"] - top).exp()
    total = before + now
    out = call["prev_attn_out"].float() * (before / total)[..., :1] + call["cur_attn_out"].float() * (now / total)[..., :1]
    return out.to(call["prev_attn_out"].dtype), top, total


KERNELS.update({kernel.__name__: kernel for kernel in (npu_fusion_attention, npu_fusion_attention_grad, npu_ring_attention_update)})


def _flattened(call: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, tuple[int, ...]]:
    """Queries, keys and values as fp32 [T, heads, D], and the shape of the statistics."""
    query, key, value = (call[name].float() for name in ("query", "key", "value"))
    if call["input_layout"] == "TND":
        return query, key, value, (*query.shape[:2], 8)
    batch, length, heads = query.shape[:3]
    return query.flatten(0, 1), key.flatten(0, 1), value.flatten(0, 1), (batch, heads, length, 8)


def _sequences(call: dict[str, Any]) -> Iterator[_Sequence]:
    """Rows of the queries and keys of each sequence that has any."""
    if call["input_layout"] == "TND":
        bounds = [[0, *call["actual_seq_qlen"]], [0, *call["actual_seq_kvlen"]]]
    else:
        bounds = [[number * call[name].shape[1] for number in range(call[name].shape[0] + 1)] for name in ("query", "key")]
    found = list(zip(*(list(pairwise(one)) for one in bounds)))
    check_mask(call, [(q1 - q0, k1 - k0) for (q0, q1), (k0, k1) in found])
    for (q0, q1), (k0, k1) in found:
        if q1 > q0:
            demand(k1 > k0, "queries without any key")
            yield slice(q0, q1), slice(k0, k1)


def _scores(query: torch.Tensor, key: torch.Tensor, call: dict[str, Any]) -> torch.Tensor:
    scale = call["scale_value"] if "scale_value" in call else call["scale"]
    scores_NQS = query.transpose(0, 1) @ _per_head(key, query.shape[1]).transpose(1, 2) * scale
    mask, mode = call["atten_mask"], call["sparse_mode"]
    if mask is None:
        return scores_NQS
    rows, keys = scores_NQS.shape[1:]
    if mode in (0, 1):
        hidden = mask[..., :rows, :keys].bool().reshape(rows, keys)
    else:  # 2: causal from the top left corner; 3: from the bottom right
        hidden = torch.ones(rows, keys, dtype=torch.bool).triu(1 if mode == 2 else 1 + keys - rows)
    demand(not bool(hidden.all(-1).any()), "a row is masked as a whole")
    return scores_NQS.masked_fill(hidden, float("-inf"))


def _per_head(x_SGD: torch.Tensor, heads: int) -> torch.Tensor:
    return x_SGD.transpose(0, 1).repeat_interleave(heads // x_SGD.shape[1], dim=0)


def _folded(x_NSD: torch.Tensor, kv_heads: int) -> torch.Tensor:
    return x_NSD.unflatten(0, (kv_heads, -1)).sum(1).transpose(0, 1)


def _is_ntd(call: dict[str, Any], chip: Ascend) -> bool:
    return not (call["softmax_layout"] == "TND" and chip.honours_softmax_layout)


def _written(values_TN: torch.Tensor, call: dict[str, Any], chip: Ascend) -> torch.Tensor:
    """Statistics as the chip writes them: eight times, and for TND by default sequence by sequence as [N, S] under the shape [T, N, 8]."""
    if call["input_layout"] == "TND" and not _is_ntd(call, chip):
        return values_TN.unsqueeze(-1).repeat(1, 1, 8)
    parts = [values_TN[rows].T.reshape(-1) for rows, _ in _sequences(call)]
    batch, length = call["query"].shape[:2]
    shape = values_TN.shape if call["input_layout"] == "TND" else (batch, values_TN.shape[1], length)
    return torch.cat(parts).view(shape).unsqueeze(-1).repeat(*(1 for _ in shape), 8)


def _read(statistics: torch.Tensor, call: dict[str, Any], chip: Ascend) -> torch.Tensor:
    """The inverse of _written: [T, N]."""
    values = statistics[..., 0]
    if call["input_layout"] == "TND" and not _is_ntd(call, chip):
        return values
    heads, flat = call["head_num"], values.reshape(-1)
    return torch.cat([flat[rows.start * heads : rows.stop * heads].view(heads, -1).T for rows, _ in _sequences(call)])
