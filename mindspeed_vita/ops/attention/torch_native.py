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

_TAKES_GROUPS = tuple(map(int, torch.__version__.split(".")[:2])) >= (2, 13)
"""Whether the kernel is known to read fewer key heads than query heads. That of torch 2.7.1 writes outside its memory; those between were
not tried. Where it is not known, each query head is given a copy of its key head."""


def blocks_forward(blocks: Blocks) -> tuple[torch.Tensor, torch.Tensor]:
    """See registry.Backend. The kernel's causal mask is top-left; causal segments are square, so that is the diagonal."""
    outs, lses = [], []
    for q0, q1, k0, k1 in blocks.segments.tolist():
        query = _heads_first(blocks.q_TND[q0:q1])
        key, value = (_key_heads(x[k0:k1], query) for x in (blocks.k_SGD, blocks.v_SGD))
        out, lse = _cpu_flash(query, key, value, 0.0, blocks.causal, scale=blocks.scale)
        outs.append(out.squeeze(0).transpose(0, 1))
        lses.append(lse.squeeze(0).transpose(0, 1))
    return torch.cat(outs), torch.cat(lses)


def blocks_backward(blocks: Blocks, upstream: Upstream, *, dq_TND: torch.Tensor, dkv_2SGD: torch.Tensor) -> None:
    """See registry.Backend."""
    for q0, q1, k0, k1 in blocks.segments.tolist():
        grad, query, out = (_heads_first(x[q0:q1]) for x in (upstream.grad_TND, blocks.q_TND, upstream.out_TND))
        key, value = (_key_heads(x[k0:k1], query) for x in (blocks.k_SGD, blocks.v_SGD))
        lse = upstream.lse_TN[q0:q1].transpose(0, 1).unsqueeze(0)
        dq, dk, dv = _cpu_flash_backward(grad, query, key, value, out, lse, 0.0, blocks.causal, scale=blocks.scale)
        dq_TND[q0:q1] += dq.squeeze(0).transpose(0, 1)
        kv_heads = blocks.k_SGD.shape[1]
        for place, found in enumerate((dk, dv)):
            found_SND = found.squeeze(0).transpose(0, 1)
            if found_SND.shape[1] != kv_heads:
                found_SND = found_SND.unflatten(1, (kv_heads, -1)).sum(2)
            dkv_2SGD[place, k0:k1] += found_SND


def _key_heads(x_SGD: torch.Tensor, query_1NTD: torch.Tensor) -> torch.Tensor:
    """Keys or values as the kernel takes them: [1, G, S, D], or [1, N, S, D] where it takes no groups."""
    if not _TAKES_GROUPS:
        x_SGD = x_SGD.repeat_interleave(query_1NTD.shape[1] // x_SGD.shape[1], dim=1)
    return _heads_first(x_SGD)


def paged_forward(paged: Paged) -> tuple[torch.Tensor, torch.Tensor]:
    """See registry.Backend. The query heads of one key head go to the kernel as rows of one head, so keys are read once."""
    sequences, kv_heads, size = paged.sequences, paged.k_BSGD.shape[2], paged.k_BSGD.shape[1]
    if 1 < len(sequences.places) == len(paged.q_TND) and int(sequences.lengths.max()) <= _LONGEST_PADDED:
        return _padded(paged)
    keys, values = (x.flatten(0, 1).transpose(0, 1).unsqueeze(0) for x in (paged.k_BSGD, paged.v_BSGD))
    query_TGRD = paged.q_TND.unflatten(1, (kv_heads, -1))
    out_TGRD, lse_TGR = torch.empty_like(query_TGRD), torch.empty(query_TGRD.shape[:-1])
    for (start, stop), runs in zip(sequences.places, kept(sequences.lengths, keys.device, "runs", lambda: _all_runs(sequences, size))):
        query = query_TGRD[start:stop]
        if stop - start == 1:
            out_TGRD[start:stop], lse_TGR[start:stop] = _over_runs(query, keys, values, runs, paged.scale)
            continue
        out, lse = _over_runs(query.transpose(0, 1).flatten(1, 2).unsqueeze(0), keys, values, runs, paged.scale)
        out_TGRD[start:stop] = out[0].unflatten(1, (stop - start, -1)).transpose(0, 1)
        lse_TGR[start:stop] = lse[0].unflatten(1, (stop - start, -1)).transpose(0, 1)
    return out_TGRD.flatten(1, 2), lse_TGR.flatten(1)


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


def _over_runs(
    query_1GQD: torch.Tensor, keys_1GTD: torch.Tensor, values_1GTD: torch.Tensor, runs: list[Rows], scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Output and log-sum-exp over keys in several places of the cache."""
    found = [_cpu_flash(query_1GQD, keys_1GTD[:, :, run], values_1GTD[:, :, run], 0.0, False, scale=scale) for run in runs]
    if len(found) == 1:
        return found[0]
    outs, lses = torch.stack([out for out, _ in found]).float(), torch.stack([lse for _, lse in found])
    lse_1GQ = lses.logsumexp(0)
    return (outs * (lses - lse_1GQ).exp().unsqueeze(-1)).sum(0).to(query_1GQD.dtype), lse_1GQ


def _all_runs(sequences: PagedSequences, size: int) -> list[list[Rows]]:
    """Where the keys of each sequence lie, counted in tokens; the same in every layer."""
    return [_runs(table, length, size) for table, length in zip(sequences.tables, sequences.lengths.tolist())]


def _runs(table: np.ndarray, length: int, size: int) -> list[Rows]:
    """Long runs of neighbouring blocks in place, all other blocks together."""
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
