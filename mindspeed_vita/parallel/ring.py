"""Ring attention over a plan: queries stay, keys and values travel, partial results merge by log-sum-exp in fp32.

At distance d every rank sends to rank + d the keys which that rank's queries look at, and gets its own from rank - d; a transfer runs while
the blocks of the one before are computed. Where every key is needed this is the ring; where documents live on one rank
nothing is sent. In the backward pass the same keys travel again and their gradients return the same way.
Shapes: T tokens of this rank, N query heads, G key heads, D width of a head.
"""

from __future__ import annotations

from typing import Any, Optional, Protocol

import numpy as np
import torch
import torch.distributed as dist

from mindspeed_vita.models.kept_attention import KeptAttention
from mindspeed_vita.ops.attention import Backend, Blocks, Upstream
from mindspeed_vita.ops.attention.blocks import on_device, segment_rows
from mindspeed_vita.sharding import CPPlan
from mindspeed_vita.sharding.ring_steps import RankSteps, RingStep


def ring_attention(
    q_TND: torch.Tensor,
    k_TGD: torch.Tensor,
    v_TGD: torch.Tensor,
    cp_plan: CPPlan,
    *,
    scale: float,
    group: Any,
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
        group: context-parallel process group; None for a plan of one rank.
        rank: this process's rank in it.
        backend: attention backend, as ops.attention.choose returns them.
        kept: a call without gradients leaves its result here. The next call with gradients, for the same tensors, takes it: then nothing
            is computed or sent before the backward pass. Given on every rank of the group or on none.

    Returns:
        out_TND in the dtype of q_TND. Outputs, log-sum-exps and gradients accumulate in fp32.
    """
    recomputing = torch.is_grad_enabled()  # asked here: inside of an autograd function it is always off
    known = kept.take() if kept is not None and recomputing else None
    out, lse_TN = _RingAttention.apply(q_TND, k_TGD, v_TGD, cp_plan.steps(rank), scale, GroupKeyExchange(group), backend, known)
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
        out, lse_TN = known or ring_forward(q, torch.stack([k, v]), steps, scale, exchange, backend)
        ctx.mark_non_differentiable(lse_TN)
        ctx.save_for_backward(q, k, v, out, lse_TN)
        ctx.steps, ctx.scale, ctx.exchange, ctx.backend = steps, scale, exchange, backend
        return out, lse_TN

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor, no_grad: Any) -> tuple[Optional[torch.Tensor], ...]:
        q, k, v, out, lse_TN = ctx.saved_tensors
        dq, dkv, pending = ring_backward(grad, q, torch.stack([k, v]), out, lse_TN, ctx.steps, ctx.scale, ctx.exchange, ctx.backend)
        collect(dkv, pending)
        return dq.to(q.dtype), dkv[0].to(k.dtype), dkv[1].to(v.dtype), None, None, None, None, None


def ring_forward(
    q_TND: torch.Tensor, kv_2TGD: torch.Tensor, steps: RankSteps, scale: float, exchange: KeyExchange, backend: Backend
) -> tuple[torch.Tensor, torch.Tensor]:
    """One rank's output, in the dtype of its queries, and its log-sum-exp, fp32 [T, N]."""
    transfer = exchange.fetch(kv_2TGD, steps, 1)

    def attend(keys: torch.Tensor, segments: np.ndarray, causal: bool) -> tuple[torch.Tensor, torch.Tensor]:
        blocks = Blocks(q_TND=q_TND, k_SGD=keys[0], v_SGD=keys[1], segments=segments, causal=causal, scale=scale)
        return backend.blocks_forward(blocks)

    out_TND, lse_TN = attend(kv_2TGD, steps.diagonal_segments, True)
    for distance, step in enumerate(steps.ring):
        if distance:
            received = transfer.wait()
            transfer = exchange.fetch(kv_2TGD, steps, distance + 1)
        else:
            received = _own_keys(kv_2TGD, step)
        if len(step.segments):
            out_TND = out_TND.float()  # a copy the first time: what is not merged need not be accumulated
            partial = attend(received, step.segments, False)
            backend.merge_(out_TND, lse_TN, segment_rows(step.segments, q_TND.device), *partial)
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
) -> tuple[torch.Tensor, torch.Tensor, list[tuple[RingStep, Transfer]]]:
    """Gradients of one rank: dq, dkv of its own tokens so far, both fp32, and the parts still on their way back, for `collect`.

    No more than exchange.max_pending of these fp32 parts exist at a time.
    """
    transfer = exchange.fetch(kv_2TGD, steps, 1)
    dq_TND = torch.zeros_like(q_TND, dtype=torch.float32)
    dkv_2TGD = torch.zeros_like(kv_2TGD, dtype=torch.float32)
    upstream = Upstream(grad_TND=grad_TND, out_TND=out_TND, lse_TN=lse_TN)

    def add(keys: torch.Tensor, segments: np.ndarray, causal: bool, dkv: torch.Tensor) -> None:
        blocks = Blocks(q_TND=q_TND, k_SGD=keys[0], v_SGD=keys[1], segments=segments, causal=causal, scale=scale)
        backend.blocks_backward(blocks, upstream, dq_TND=dq_TND, dkv_2SGD=dkv)

    add(kv_2TGD, steps.diagonal_segments, True, dkv_2TGD)
    pending: list[tuple[RingStep, Transfer]] = []
    for distance, step in enumerate(steps.ring):
        if distance:
            received = transfer.wait()
            transfer = exchange.fetch(kv_2TGD, steps, distance + 1)
        else:
            received = _own_keys(kv_2TGD, step)
        dkv_received = torch.zeros_like(received, dtype=torch.float32)
        if len(step.segments):
            add(received, step.segments, False, dkv_received)
        back = exchange.give_back(dkv_received, step, distance) if distance else Transfer(dkv_received)
        pending.append((step, back))
        while exchange.max_pending is not None and len(pending) > exchange.max_pending:
            collect(dkv_2TGD, [pending.pop(0)])
    return dq_TND, dkv_2TGD, pending


def collect(dkv_2TGD: torch.Tensor, pending: list[tuple[RingStep, Transfer]]) -> None:
    """Adds what comes back for this rank's keys, in place."""
    for step, transfer in pending:
        dkv_2TGD.index_add_(1, on_device(step.send, dkv_2TGD.device), transfer.wait())


class KeyExchange(Protocol):
    """Moves keys, values and their gradients between the ranks of a context-parallel group."""

    max_pending: Optional[int]
    """Gradients on their way back that may wait at a time; None: none arrives before every rank is done."""

    def fetch(self, kv_2TGD: torch.Tensor, steps: RankSteps, distance: int) -> Transfer:
        """Keys and values from rank - distance, [2, num_received, G, D], against those that rank + distance needs of ours."""

    def give_back(self, dkv: torch.Tensor, step: RingStep, distance: int) -> Transfer:
        """Gradients of fetched keys return to rank - distance, against those of ours from rank + distance."""


class Transfer:
    """A transfer under way; keeps what is sent alive until it is done."""

    def __init__(self, received: torch.Tensor, sent: Optional[torch.Tensor] = None, works: tuple[Any, ...] = ()) -> None:
        self.received, self.sent, self.works = received, sent, works

    def wait(self) -> torch.Tensor:
        """What arrived."""
        for work in self.works:
            work.wait()
        return self.received


class GroupKeyExchange:
    """A KeyExchange by point-to-point transfers in one ring group. All ranks start the same transfers in the same order."""

    max_pending: Optional[int] = 2

    def __init__(self, group: Any) -> None:
        self.group = group

    def fetch(self, kv_2TGD: torch.Tensor, steps: RankSteps, distance: int) -> Transfer:
        """See KeyExchange."""
        if distance >= len(steps.ring):
            return Transfer(kv_2TGD[:, :0])
        step = steps.ring[distance]
        return self.swap(kv_2TGD.index_select(1, on_device(step.send, kv_2TGD.device)), step.num_received, distance)

    def give_back(self, dkv: torch.Tensor, step: RingStep, distance: int) -> Transfer:
        """See KeyExchange."""
        return self.swap(dkv, len(step.send), -distance)

    def swap(self, outgoing: torch.Tensor, num_incoming: int, distance: int) -> Transfer:
        """Sends keys and values [2, num_outgoing, G, D] to rank + distance, and receives num_incoming of them from rank - distance."""
        ranks, rank = dist.get_process_group_ranks(self.group), dist.get_rank(self.group)
        incoming = outgoing.new_empty((2, num_incoming, *outgoing.shape[2:]))
        operations = []
        if outgoing.numel():
            operations.append(dist.P2POp(dist.isend, outgoing, ranks[(rank + distance) % len(ranks)], self.group))
        if incoming.numel():
            operations.append(dist.P2POp(dist.irecv, incoming, ranks[(rank - distance) % len(ranks)], self.group))
        works = tuple(dist.batch_isend_irecv(operations)) if operations else ()
        return Transfer(incoming, outgoing, works)


def _own_keys(kv_2TGD: torch.Tensor, step: RingStep) -> torch.Tensor:
    """This rank's keys that its own later runs look at."""
    return kv_2TGD.index_select(1, on_device(step.send, kv_2TGD.device))
