"""All ranks of a ring in one process, one after the other: to measure or check a ring of any size on a single device."""

from __future__ import annotations

from collections.abc import Callable
from typing import Optional

import torch

from mindspeed_vita.ops.attention import Backend, Heads, choose
from mindspeed_vita.parallel.ring import ring_backward, ring_forward
from mindspeed_vita.parallel.ring_exchange import Transfer
from mindspeed_vita.sharding import CPPlan, index
from mindspeed_vita.sharding.ring_steps import RankSteps, RingStep, Round


def virtual_ring_attention(
    q_SND: torch.Tensor,
    k_SGD: torch.Tensor,
    v_SGD: torch.Tensor,
    grad_SND: torch.Tensor,
    cp_plan: CPPlan,
    *,
    scale: float,
    backend: Optional[Backend] = None,
    gradients: torch.dtype = torch.float32,
) -> tuple[torch.Tensor, ...]:
    """Output and gradients of a whole pack as a ring of cp_plan.ring_size ranks computes them.

    Args:
        q_SND, k_SGD, v_SGD: of the whole pack, in pack order.
        grad_SND: gradient of the output.
        cp_plan: owners and documents. Where ranks stand makes no difference here.
        scale: factor on the scores.
        backend: attention kernels; None takes the first that does not refuse.
        gradients: in which gradients of keys and values travel.

    Returns:
        (out, dq, dk, dv) of the whole pack in the inputs' dtypes.
    """
    backend, cp_plan = backend or choose(Heads.of(q_SND)), cp_plan.by_node(0)
    own = [torch.from_numpy(index(cp_plan, rank)).to(q_SND.device) for rank in range(cp_plan.ring_size)]
    steps = [cp_plan.steps(rank) for rank in range(cp_plan.ring_size)]
    queries = [q_SND[rows] for rows in own]
    keys = [torch.stack([k_SGD[rows], v_SGD[rows]]) for rows in own]
    exchanges = [_SharedMemory(keys, steps, rank, gradients) for rank in range(cp_plan.ring_size)]
    ranks = range(cp_plan.ring_size)
    forward = [ring_forward(queries[rank], keys[rank], steps[rank], scale, exchanges[rank], backend) for rank in ranks]
    mailbox: dict[tuple[int, int], torch.Tensor] = {}
    for exchange in exchanges:
        exchange.mailbox = mailbox
    backward = [
        ring_backward(grad_SND[own[rank]], queries[rank], keys[rank], *forward[rank], steps[rank], scale, exchanges[rank], backend)
        for rank in ranks
    ]
    dkv = [returns.collect() for _, returns in backward]  # only now has every rank sent back what it owes

    def whole(like: torch.Tensor, parts: list[torch.Tensor]) -> torch.Tensor:
        result = torch.empty_like(like)
        for rows, part in zip(own, parts):
            result[rows] = part.to(like.dtype)
        return result

    out, dq = whole(q_SND, [part for part, _ in forward]), whole(q_SND, [part for part, _ in backward])
    return out, dq, whole(k_SGD, [part[0] for part in dkv]), whole(v_SGD, [part[1] for part in dkv])


class _SharedMemory:
    """A ring_exchange.KeyExchange in one process: every rank's keys are at hand, gradients wait in a mailbox."""

    max_pending: Optional[int] = None

    def __init__(self, keys: list[torch.Tensor], steps: list[RankSteps], rank: int, gradients: torch.dtype) -> None:
        self.keys, self.steps, self.rank, self.gradients = keys, steps, rank, gradients
        self.mailbox: dict[tuple[int, int], torch.Tensor] = {}

    def cross(self, kv_2TGD: torch.Tensor, rounds: tuple[Round, ...], number: int) -> Transfer:
        """See ring_exchange.KeyExchange."""
        assert number >= len(rounds), "all ranks are in one node"
        return Transfer(kv_2TGD[:, :0])

    def cross_back(self, dkv: torch.Tensor, held: Round, number: int) -> Transfer:
        """See ring_exchange.KeyExchange. Nothing came across a border."""
        raise AssertionError("all ranks are in one node")

    def fetch(self, held_2HGD: torch.Tensor, ring: tuple[RingStep, ...], distance: int) -> Transfer:
        """See ring_exchange.KeyExchange."""
        if distance >= len(ring):
            return Transfer(held_2HGD[:, :0])
        source = (self.rank - distance) % len(self.keys)
        rows = torch.from_numpy(self.steps[source].ring[distance].send).to(held_2HGD.device)
        return Transfer(self.keys[source].index_select(1, rows))

    def give_back(self, dkv: torch.Tensor, step: RingStep, distance: int) -> Transfer:
        """See ring_exchange.KeyExchange."""
        size = len(self.keys)
        self.mailbox[(self.rank - distance) % size, self.rank] = dkv
        return _Later(lambda: self.mailbox[self.rank, (self.rank + distance) % size])


class _Later(Transfer):
    """A transfer whose content exists only once the sender has run."""

    def __init__(self, read: Callable[[], torch.Tensor]) -> None:
        self.read = read

    def wait(self) -> torch.Tensor:
        """What arrived."""
        return self.read()
