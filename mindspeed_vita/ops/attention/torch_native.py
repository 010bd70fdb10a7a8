"""Attention on a CPU by torch's own flash kernel, which returns the log-sum-exp. Shapes as in registry.py."""

from __future__ import annotations

from typing import Optional

import numpy as np
import torch
import torch.nn.functional as F

from mindspeed_vita.ops.attention.blocks import kept, merge_
from mindspeed_vita.ops.attention.call import Blocks, Heads, Rows, Upstream
from mindspeed_vita.ops.attention.paged import Paged, PagedSequences

__all__ = ["blocks_backward", "blocks_forward", "merge_", "paged_forward", "refuse", "tiles"]


def refuse(heads: Heads) -> Optional[str]:
    """Takes fp32, bf16 and fp16, grouped queries and unequal lengths, on a CPU."""
    return None if heads.device.type == "cpu" else f"runs on cpu, not on {heads.device.type}"


def tiles(q_BPND: torch.Tensor, k_BPND: torch.Tensor, v_BPND: torch.Tensor, scale: float) -> torch.Tensor:
    """Bidirectional attention inside each tile; see api.tile_attention."""
    q_BNPD, k_BNPD, v_BNPD = (x.transpose(1, 2) for x in (q_BPND, k_BPND, v_BPND))
    return F.scaled_dot_product_attention(q_BNPD, k_BNPD, v_BNPD, scale=scale).transpose(1, 2)


_FEWEST_IN_PLACE = 4
"""Neighbouring blocks that are attended to where they lie, by a call of their own. Shorter runs are copied together: one call has the
price of copying about so many blocks."""

_LONGEST_PADDED = 256
"""Keys of the longest sequence up to which decoding copies all sequences' keys together, padded. One call then costs half as much as one
for each of eight sequences, or less; from about 512 keys on the copies cost more than the calls."""

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


def paged_forward(paged: Paged) -> tuple[torch.Tensor, torch.Tensor]:
    """See registry.Backend. The query heads of one key head go to the kernel as rows of one head, so keys are read once."""
    tokens, heads, width = paged.q_TND.shape
    kv_heads, places = paged.k_BSGD.shape[2], paged.sequences.places
    if 1 < len(places) == tokens and int(paged.sequences.lengths.max()) <= _LONGEST_PADDED:
        return _padded(paged)
    grouped_GTRD = paged.q_TND.unflatten(1, (kv_heads, -1)).transpose(0, 1)
    out_TND, lse_TN = torch.empty_like(paged.q_TND), torch.empty(tokens, heads)
    for place, (start, stop) in enumerate(places):
        query_1GQD = grouped_GTRD[:, start:stop].reshape(1, kv_heads, -1, width)
        out, lse = _over_parts(query_1GQD, _parts(paged, place), paged.scale)
        out_TND[start:stop] = out.view(kv_heads, stop - start, -1, width).transpose(0, 1).flatten(1, 2)
        lse_TN[start:stop] = lse.view(kv_heads, stop - start, -1).transpose(0, 1).flatten(1)
    return out_TND, lse_TN


def _padded(paged: Paged) -> tuple[torch.Tensor, torch.Tensor]:
    """One query per sequence, all in one call over copied keys."""
    sequences, kv_heads, size = paged.sequences, paged.k_BSGD.shape[2], paged.k_BSGD.shape[1]
    rows, hidden_n11S = kept(sequences.lengths, paged.q_TND.device, "padded", lambda: _padding(sequences, size))
    keys, values = (x.flatten(0, 1)[rows].unflatten(0, (len(hidden_n11S), -1)).transpose(1, 2) for x in (paged.k_BSGD, paged.v_BSGD))
    query_nGQD = paged.q_TND.unflatten(1, (kv_heads, -1))
    out, lse = _cpu_flash(query_nGQD, keys, values, 0.0, False, attn_mask=hidden_n11S.to(keys.dtype), scale=paged.scale)
    return out.flatten(1, 2), lse.flatten(1)


def _padding(sequences: PagedSequences, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of the cache, each sequence's filled up with its first one, and what is added to scores: -inf where they were filled up."""
    longest = int(sequences.lengths.max())
    rows = torch.empty(len(sequences.tables), longest, dtype=torch.int64)
    for filled, own in zip(rows, sequences.key_rows(size).split(sequences.lengths.tolist())):
        filled[: len(own)], filled[len(own) :] = own, own[0]
    beyond = torch.arange(longest) >= torch.from_numpy(sequences.lengths).unsqueeze(1)
    hidden = torch.zeros(beyond.shape).masked_fill_(beyond, float("-inf"))
    return rows.flatten(), hidden[:, None, None, :]


def _over_parts(
    query_1GQD: torch.Tensor, parts: list[tuple[torch.Tensor, torch.Tensor]], scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """out_GQD and its log-sum-exp, over keys in several places."""
    found = [_cpu_flash(query_1GQD, _heads_first(key), _heads_first(value), 0.0, False, scale=scale) for key, value in parts]
    if len(found) == 1:
        return found[0][0][0], found[0][1][0]
    outs, lses = torch.stack([out[0] for out, _ in found]).float(), torch.stack([lse[0] for _, lse in found])
    lse_GQ = lses.logsumexp(0)
    return (outs * (lses - lse_GQ).exp().unsqueeze(-1)).sum(0).to(query_1GQD.dtype), lse_GQ


def _parts(paged: Paged, place: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Keys and values [K, G, D] of one sequence: long runs of neighbouring blocks in place, all others in one copy."""
    k_TGD, v_TGD = paged.k_BSGD.flatten(0, 1), paged.v_BSGD.flatten(0, 1)
    runs = kept(paged.sequences.tables[place], k_TGD.device, "runs", lambda: _runs(paged.sequences, place, paged.k_BSGD.shape[1]))
    return [(k_TGD[run], v_TGD[run]) for run in runs]


def _runs(sequences: PagedSequences, place: int, size: int) -> list[Rows]:
    """Where the keys of one sequence lie, counted in tokens; the same in every layer."""
    table, length = sequences.tables[place], int(sequences.lengths[place])
    bounds = [0, *(np.flatnonzero(np.diff(table) != 1) + 1).tolist(), len(table)]
    runs: list[Rows] = []
    rows = []
    for first, last in zip(bounds, bounds[1:]):
        start = int(table[first]) * size
        stop = start + min(last * size, length) - first * size
        if last - first >= _FEWEST_IN_PLACE or len(bounds) == 2:
            runs.append(slice(start, stop))
        else:
            rows.append(torch.arange(start, stop))
    return [*runs, torch.cat(rows)] if rows else runs


def _heads_first(x_TND: torch.Tensor) -> torch.Tensor:
    return x_TND.transpose(0, 1).unsqueeze(0)
