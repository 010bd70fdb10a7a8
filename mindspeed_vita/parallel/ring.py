"""Ring attention over a plan: queries stay, keys and values travel, partial results merge by log-sum-exp in fp32.

At distance d every rank sends to rank + d the keys which that rank's queries look at, and gets its own from rank - d; a transfer runs while
the blocks of the one before are computed. Where every key is needed this is the ring; where documents live on one rank
nothing is sent. In the backward pass the same keys travel again and their gradients return the same way.
On several nodes this happens once per node, in rounds: with each rank's own keys, and then with keys of the other nodes, which cross each
border once (sharding/ring_steps.py says which, ring_exchange.py sends them).
Shapes: T tokens of this rank, S keys of a step, N query heads, G key heads, D width of a head.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Optional

import numpy as np
import torch

from mindspeed_vita.models.kept_attention import KeptAttention
from mindspeed_vita.ops.attention import Backend, Blocks, Upstream
from mindspeed_vita.ops.attention.blocks import on_device, segment_rows
from mindspeed_vita.parallel.ring_exchange import KeyExchange, Transfer
from mindspeed_vita.platform.phases import phase
from mindspeed_vita.sharding import CPPlan
from mindspeed_vita.sharding.ring_steps import RankSteps, RingStep


def ring_attention(
    q_TND: torch.Tensor,
    k_TGD: torch.Tensor,
    v_TGD: torch.Tensor,
    cp_plan: CPPlan,
    *,
    scale: float,
    exchange: KeyExchange,
    rank: int,
    backend: Backend,
    kept: Optional[KeptAttention] = None,
) -> torch.Tensor:
    """Causal attention inside each document of the plan, over tokens spread over a group.

    Args:
        q_TND: queries of this rank's tokens, in the order of sharding.index(cp_plan, rank).
        k_TGD, v_TGD: its keys and values.
        cp_plan: owners and documents.
        scale: factor on the scores.
        exchange: to the other ranks of the ring.
        rank: this process's rank on it.
        backend: attention backend, as ops.attention.choose returns them.
        kept: a call without gradients leaves its result here. The next call with gradients, for the same tensors, takes it: then nothing
            is computed or sent before the backward pass. Given on every rank of the group or on none.

    Returns:
        out_TND in the dtype of q_TND. Outputs, log-sum-exps and gradients accumulate in fp32.
    """
    recomputing = torch.is_grad_enabled()  # asked here: inside of an autograd function it is always off
    known = kept.take() if kept is not None and recomputing else None
    out, lse_TN = _RingAttention.apply(q_TND, k_TGD, v_TGD, cp_plan.steps(rank), scale, exchange, backend, known)
    if kept is not None and not recomputing:
        kept.keep(out, lse_TN)
    return out  # type: ignore[no-any-return]


class _RingAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        steps: RankSteps,
        scale: float,
        exchange: KeyExchange,
        backend: Backend,
        known: Optional[tuple[torch.Tensor, torch.Tensor]],
    ) -> tuple[torch.Tensor, torch.Tensor]:
        with phase("ring"):
            out, lse_TN = known or ring_forward(q, torch.stack([k, v]), steps, scale, exchange, backend)
        ctx.mark_non_differentiable(lse_TN)
        ctx.save_for_backward(q, k, v, out, lse_TN)
        ctx.steps, ctx.scale, ctx.exchange, ctx.backend = steps, scale, exchange, backend
        return out, lse_TN

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor, no_grad: Any) -> tuple[Optional[torch.Tensor], ...]:
        q, k, v, out, lse_TN = ctx.saved_tensors
        with phase("ring"):
            dq, returns = ring_backward(grad, q, torch.stack([k, v]), out, lse_TN, ctx.steps, ctx.scale, ctx.exchange, ctx.backend)
            dkv = returns.collect()
        return dq.to(q.dtype), dkv[0].to(k.dtype), dkv[1].to(v.dtype), None, None, None, None, None


def ring_forward(
    q_TND: torch.Tensor, kv_2TGD: torch.Tensor, steps: RankSteps, scale: float, exchange: KeyExchange, backend: Backend
) -> tuple[torch.Tensor, torch.Tensor]:
    """One rank's output, in the dtype of its queries, and its log-sum-exp, fp32 [T, N]."""
    arrivals = _Arrivals(kv_2TGD, steps, exchange)

    def attend(keys: torch.Tensor, segments: np.ndarray, causal: bool) -> tuple[torch.Tensor, torch.Tensor]:
        blocks = Blocks(q_TND=q_TND, k_SGD=keys[0], v_SGD=keys[1], segments=segments, causal=causal, scale=scale)
        return backend.blocks_forward(blocks)

    out_TND, lse_TN = attend(kv_2TGD, steps.diagonal_segments, True)
    for keys in arrivals:
        if len(keys.step.segments):
            out_TND = out_TND.float()  # a copy the first time: what is not merged need not be accumulated
            partial = attend(keys.kv_2SGD, keys.step.segments, False)
            backend.merge_(out_TND, lse_TN, segment_rows(keys.step.segments, q_TND.device), *partial)
    return out_TND.to(q_TND.dtype), lse_TN


def ring_backward(
    grad_TND: torch.Tensor,
    q_TND: torch.Tensor,
    kv_2TGD: torch.Tensor,
    out_TND: torch.Tensor,
    lse_TN: torch.Tensor,
    steps: RankSteps,
    scale: float,
    exchange: KeyExchange,
    backend: Backend,
) -> tuple[torch.Tensor, Returns]:
    """Gradients of one rank: dq, fp32, and those of its keys and values, parts of which are still on their way back."""
    arrivals = _Arrivals(kv_2TGD, steps, exchange)
    dq_TND = torch.zeros_like(q_TND, dtype=torch.float32)
    dkv_2TGD = torch.zeros_like(kv_2TGD, dtype=torch.float32)
    upstream = Upstream(grad_TND=grad_TND, out_TND=out_TND, lse_TN=lse_TN)

    def add(keys: torch.Tensor, segments: np.ndarray, causal: bool, dkv: torch.Tensor) -> None:
        blocks = Blocks(q_TND=q_TND, k_SGD=keys[0], v_SGD=keys[1], segments=segments, causal=causal, scale=scale)
        backend.blocks_backward(blocks, upstream, dq_TND=dq_TND, dkv_2SGD=dkv)

    add(kv_2TGD, steps.diagonal_segments, True, dkv_2TGD)
    returns = Returns(dkv_2TGD, steps, exchange)
    for keys in arrivals:
        dkv_2SGD = torch.zeros_like(keys.kv_2SGD, dtype=torch.float32)
        if len(keys.step.segments):
            add(keys.kv_2SGD, keys.step.segments, False, dkv_2SGD)
        returns.send(dkv_2SGD, keys)
    return dq_TND, returns


@dataclass(frozen=True)
class _Keys:
    """Keys and values for one step, [2, num_received, G, D]."""

    kv_2SGD: torch.Tensor
    step: RingStep
    round: int
    distance: int


class _Arrivals:
    """The keys of every step, in order. The first transfers start at once, each later one before the caller computes with what came."""

    def __init__(self, kv_2TGD: torch.Tensor, steps: RankSteps, exchange: KeyExchange) -> None:
        self.kv_2TGD, self.rounds, self.exchange = kv_2TGD, steps.rounds, exchange
        self.crossing = exchange.cross(kv_2TGD, steps.rounds, 1)
        self.next = exchange.fetch(kv_2TGD, steps.rounds[0].ring, 1)

    def __iter__(self) -> Iterator[_Keys]:
        for number, current in enumerate(self.rounds):
            if number:
                held = self.crossing.wait()
                self.crossing = self.exchange.cross(self.kv_2TGD, self.rounds, number + 1)
                self.next = self.exchange.fetch(held, current.ring, 1)
            else:
                held = self.kv_2TGD
            own = held.index_select(1, on_device(current.ring[0].send, held.device))
            yield _Keys(own, current.ring[0], number, 0)
            for distance, step in enumerate(current.ring[1:], 1):
                received = self.next.wait()
                self.next = self.exchange.fetch(held, current.ring, distance + 1)
                yield _Keys(received, step, number, distance)


@dataclass(frozen=True)
class _Part:
    """Gradients on their way back: rows of a sum that they belong to."""

    transfer: Transfer
    rows: np.ndarray
    total: torch.Tensor
    completes: int = 0
    """The round whose sum for another node is complete with this part; 0: none."""


class Returns:
    """Gradients of keys and values on their way back to the ranks that own them.

    No more than exchange.max_pending parts wait at a time.
    """

    def __init__(self, dkv_2TGD: torch.Tensor, steps: RankSteps, exchange: KeyExchange) -> None:
        self.dkv_2TGD, self.rounds, self.exchange = dkv_2TGD, steps.rounds, exchange
        self.held = dkv_2TGD
        self.pending: list[_Part] = []

    def send(self, dkv_2SGD: torch.Tensor, keys: _Keys) -> None:
        """Sends the gradients of a step's keys, fp32, to the rank of this node that holds them in the round."""
        current = self.rounds[keys.round]
        if keys.round and not keys.distance:
            self.held = self.dkv_2TGD.new_zeros(2, current.num_held, *self.dkv_2TGD.shape[2:])
        transfer = Transfer(dkv_2SGD)
        if keys.distance:
            transfer = self.exchange.give_back(dkv_2SGD.to(self.exchange.gradients), keys.step, keys.distance)
        is_last = keys.distance == len(current.ring) - 1
        self.pending.append(_Part(transfer, keys.step.send, self.held, keys.round if is_last else 0))
        while self.exchange.max_pending is not None and len(self.pending) > self.exchange.max_pending:
            self._add_oldest()

    def collect(self) -> torch.Tensor:
        """The gradients of this rank's own keys and values, fp32 [2, T, G, D], with all that comes back for them."""
        while self.pending:
            self._add_oldest()
        return self.dkv_2TGD

    def _add_oldest(self) -> None:
        part = self.pending.pop(0)
        part.total.index_add_(1, on_device(part.rows, part.total.device), part.transfer.wait().to(part.total.dtype))
        if part.completes:
            current = self.rounds[part.completes]
            transfer = self.exchange.cross_back(part.total.to(self.exchange.gradients), current, part.completes)
            self.pending.append(_Part(transfer, current.send, self.dkv_2TGD))
