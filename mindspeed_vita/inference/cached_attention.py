"""Attention of the language model over a cache whose blocks are spread over context-parallel ranks.

A prefill chunk attends to itself over the ring, as in training. For the tokens before it, either the queries travel to the cached keys
(pass-Q) or the cached keys to the queries (pass-KV); bytes decide (arXiv 2411.01783). Decoding is pass-Q with one query per sequence.
Partial results merge by log-sum-exp in fp32. Shapes: T tokens of this rank, N query heads, G key heads, D width of a head.
"""

from __future__ import annotations

from typing import Any, Optional, Union

import torch
import torch.distributed as dist

from mindspeed_vita.inference.kv_cache import KVCache
from mindspeed_vita.inference.plans import Cached, DecodePlan, PrefillPlan
from mindspeed_vita.ops.attention import Backend, Blocks, Paged, PagedSequences
from mindspeed_vita.ops.attention.blocks import segment_rows
from mindspeed_vita.parallel.all_to_all import all_to_all
from mindspeed_vita.parallel.ring import ring_forward
from mindspeed_vita.parallel.ring_exchange import Channel, GroupKeyExchange, Transfer

PASSES = ("auto", "queries", "keys")


def queries_travel(*, queries: int, keys: int, heads: int, kv_heads: int, width: int, itemsize: int, size: int) -> bool:
    """Whether pass-Q moves fewer bytes than pass-KV between ranks, over all ranks and for one layer.

    Every query goes to each other rank; from there come its output and log-sum-exp in fp32. Or every cached key and value goes to each
    other rank.

    Args:
        queries: new tokens that look at cached ones.
        keys: cached tokens.
        heads, kv_heads, width: query heads and key heads of a rank, width of a head.
        itemsize: bytes of one number of queries, keys and values.
        size: ranks.
    """
    by_queries = queries * heads * (width * itemsize + (width + 1) * 4)
    by_keys = keys * kv_heads * 2 * width * itemsize
    return (size - 1) * by_queries <= (size - 1) * by_keys


class CachedAttention:
    """Attention of all layers.

    Args:
        cache: this rank's blocks.
        backend: attention kernels, as ops.attention.choose returns them.
        group: context-parallel group; None for one rank.
        rank, size: this rank, and how many there are.
        travels: auto | queries | keys: what moves between ranks for cached tokens before a chunk.
    """

    def __init__(self, cache: KVCache, backend: Backend, *, group: Any = None, rank: int = 0, size: int = 1, travels: str = "auto") -> None:
        if travels not in PASSES:
            raise ValueError(f"travels={travels!r}; expected one of {', '.join(PASSES)}")
        self.cache, self.backend, self.group, self.rank, self.size, self.travels = cache, backend, group, rank, size, travels
        self.channel = Channel(group)

    def attend(
        self,
        layer: int,
        q_TND: torch.Tensor,
        k_TGD: torch.Tensor,
        v_TGD: torch.Tensor,
        plan: Union[PrefillPlan, DecodePlan],
        *,
        scale: float,
    ) -> torch.Tensor:
        """Writes this rank's new keys into a layer's cache and attends: out_TND in the dtype of q_TND.

        Args:
            layer: counted from 0.
            q_TND: queries of the plan's local tokens.
            k_TGD, v_TGD: their keys and values, rotated.
            plan: what the step wants of this rank.
            scale: factor on the scores.
        """
        if isinstance(plan, DecodePlan):
            return self._decode(layer, q_TND, k_TGD, v_TGD, plan, scale)
        real = plan.num_real
        self.cache.write(layer, plan.slots, k_TGD[:real], v_TGD[:real])
        steps = plan.ring.steps(self.rank)
        out_TND, lse_TN = ring_forward(q_TND, torch.stack([k_TGD, v_TGD]), steps, scale, GroupKeyExchange(self.channel), self.backend)
        if plan.cached is None:
            return out_TND
        out_TND = out_TND.float()
        if self._pass_queries(plan.cached, q_TND, k_TGD):
            self._pass_q(layer, q_TND, plan.cached, scale, out_TND, lse_TN)
        else:
            self._pass_kv(layer, q_TND, plan.cached, scale, out_TND, lse_TN)
        return out_TND.to(q_TND.dtype)

    def _pass_queries(self, cached: Cached, q_TND: torch.Tensor, k_TGD: torch.Tensor) -> bool:
        if self.size == 1 or self.travels != "auto":
            return self.size == 1 or self.travels == "queries"
        return queries_travel(
            queries=sum(cached.per_rank),
            keys=sum(cached.held_keys),
            heads=q_TND.shape[1],
            kv_heads=k_TGD.shape[1],
            width=q_TND.shape[2],
            itemsize=q_TND.element_size(),
            size=self.size,
        )

    def _decode(
        self, layer: int, q_TND: torch.Tensor, k_TGD: torch.Tensor, v_TGD: torch.Tensor, plan: DecodePlan, scale: float
    ) -> torch.Tensor:
        if len(plan.slots) == len(plan.rows):
            self.cache.write(layer, plan.slots, k_TGD, v_TGD)
        elif len(plan.slots):
            self.cache.write(layer, plan.slots, k_TGD[plan.written], v_TGD[plan.written])
        if self.size == 1:
            assert plan.sequences is not None
            return self._paged(layer, q_TND, plan.sequences, scale)[0]
        partial_TNX = _no_result(len(q_TND), q_TND)
        if plan.sequences is not None:
            partial_TNX[plan.queries] = _joined(*self._paged(layer, q_TND[plan.queries], plan.sequences, scale))
        gathered = partial_TNX.new_empty(self.size * len(q_TND), *partial_TNX.shape[1:])
        dist.all_gather_into_tensor(gathered, partial_TNX, group=self.group)
        return _merged(gathered.unflatten(0, (self.size, -1)))[0].to(q_TND.dtype)

    def _pass_q(
        self, layer: int, q_TND: torch.Tensor, cached: Cached, scale: float, out_TND: torch.Tensor, lse_TN: torch.Tensor
    ) -> None:
        """Merges attention to cached keys into out and lse, in place: queries visit the ranks that hold keys."""
        own, total = cached.per_rank[self.rank], sum(cached.per_rank)
        queries = self._all_queries(q_TND[:own], max(cached.per_rank))
        partial_QNX = _no_result(total, q_TND)
        if cached.sequences is not None:
            partial_QNX[cached.back] = _joined(*self._paged(layer, queries[cached.order], cached.sequences, scale))
        if self.size > 1:
            partial_QNX = all_to_all(partial_QNX, cached.per_rank, [own] * self.size, self.group)
        out, lse = _merged(partial_QNX.view(self.size, own, *partial_QNX.shape[1:]))
        if own:
            self.backend.merge_(out_TND, lse_TN, slice(0, own), out, lse)

    def _all_queries(self, q_QND: torch.Tensor, most: int) -> torch.Tensor:
        """Queries of all ranks, each rank's padded to as many rows."""
        if self.size == 1:
            return q_QND
        padded = q_QND.new_zeros(most, *q_QND.shape[1:])
        padded[: len(q_QND)] = q_QND
        gathered = padded.new_empty(self.size * most, *q_QND.shape[1:])
        dist.all_gather_into_tensor(gathered, padded, group=self.group)
        return gathered

    def _pass_kv(
        self, layer: int, q_TND: torch.Tensor, cached: Cached, scale: float, out_TND: torch.Tensor, lse_TN: torch.Tensor
    ) -> None:
        """As _pass_q, but cached keys visit the ranks that hold queries. The transfer of one distance runs while the one before is used."""
        own_keys = self._own_keys(layer, cached.sequences)
        transfer = Transfer(own_keys)
        for distance in range(self.size):
            received, following = transfer.wait(), distance + 1
            if following < self.size:
                wanted = cached.per_rank[(self.rank + following) % self.size] > 0
                source = cached.held_keys[(self.rank - following) % self.size] if cached.per_rank[self.rank] else 0
                transfer = self.channel.swap(own_keys if wanted else own_keys[:, :0], source, following)
            segments = cached.segments[(self.rank - distance) % self.size]
            if len(segments):
                blocks = Blocks(q_TND=q_TND, k_SGD=received[0], v_SGD=received[1], segments=segments, causal=False, scale=scale)
                self.backend.merge_(out_TND, lse_TN, segment_rows(segments, q_TND.device), *self.backend.blocks_forward(blocks))

    def _own_keys(self, layer: int, sequences: Optional[PagedSequences]) -> torch.Tensor:
        """Cached keys and values of this rank, sequence after sequence: [2, K, G, D]."""
        stored_2TGD = self.cache.tensor[layer].flatten(1, 2)
        if sequences is None:
            return stored_2TGD[:, :0]
        return stored_2TGD.index_select(1, sequences.key_rows(self.cache.block_size))

    def _paged(self, layer: int, q_TND: torch.Tensor, sequences: PagedSequences, scale: float) -> tuple[torch.Tensor, torch.Tensor]:
        keys, values = self.cache.layer(layer)
        return self.backend.paged_forward(Paged(q_TND=q_TND, k_BSGD=keys, v_BSGD=values, sequences=sequences, scale=scale))


def _no_result(rows: int, like_TND: torch.Tensor) -> torch.Tensor:
    """Partial results over no key: output 0 and log-sum-exp -inf, joined; fp32."""
    joined = like_TND.new_zeros(rows, like_TND.shape[1], like_TND.shape[2] + 1, dtype=torch.float32)
    joined[..., -1] = float("-inf")
    return joined


def _joined(out_TND: torch.Tensor, lse_TN: torch.Tensor) -> torch.Tensor:
    """Output and log-sum-exp in one fp32 tensor [T, N, D + 1], for one exchange."""
    return torch.cat([out_TND.float(), lse_TN.unsqueeze(-1)], dim=-1)


def _merged(partials_RTNX: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Partial results of several ranks as one: fp32 output and log-sum-exp. A row needs a key on one rank at least, or stays empty."""
    outs, lses = partials_RTNX[..., :-1], partials_RTNX[..., -1]
    lse_TN = lses.logsumexp(0)
    weights = (lses - lse_TN).exp().nan_to_num(0.0)  # -inf minus -inf, where no rank has a key
    return (outs * weights.unsqueeze(-1)).sum(0), lse_TN
