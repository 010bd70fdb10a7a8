"""All ranks of a ring in one process, one after the other: to measure or check a ring of any size on a single device."""

from __future__ import annotations

from collections.abc import Callable
from typing import Optional

import torch

from mindspeed_vita.ops.attention import Backend, Heads, choose
from mindspeed_vita.parallel.ring import Transfer, collect, ring_backward, ring_forward
from mindspeed_vita.sharding import CPPlan, index
from mindspeed_vita.sharding.ring_steps import RankSteps, RingStep


def virtual_ring_attention(
    q_SND: torch.Tensor,
    k_SGD: torch.Tensor,
    v_SGD: torch.Tensor,
    grad_SND: torch.Tensor,
    cp_plan: CPPlan,
    *,
    scale: float,
    backend: Optional[Backend] = None,
) -> tuple[torch.Tensor, ...]:
    """Output and gradients of a whole pack as a ring of cp_plan.ring_size ranks computes them.

    Args:
        q_SND, k_SGD, v_SGD: of the whole pack, in pack order.
        grad_SND: gradient of the output.
        cp_plan: owners and documents.
        scale: factor on the scores.
        backend: attention kernels; None takes the first that does not refuse.

    Returns:
        (out, dq, dk, dv) of the whole pack in the inputs' dtypes.
    """
    backend = backend or choose(Heads.of(q_SND))
    own = [torch.from_numpy(index(cp_plan, rank)).to(q_SND.device) for rank in range(cp_plan.ring_size)]
    steps = [cp_plan.steps(rank) for rank in range(cp_plan.ring_size)]
    queries = [q_SND[rows] for rows in own]
    keys = [torch.stack([k_SGD[rows], v_SGD[rows]]) for rows in own]
    exchanges = [_SharedMemory(keys, steps, rank) for rank in range(cp_plan.ring_size)]
    ranks = range(cp_plan.ring_size)
    forward = [ring_forward(queries[rank], keys[rank], steps[rank], scale, exchanges[rank], backend) for rank in ranks]
    mailbox: dict[tuple[int, int], torch.Tensor] = {}
    for exchange in exchanges:
        exchange.mailbox = mailbox
    backward = [
        ring_backward(grad_SND[own[rank]], queries[rank], keys[rank], *forward[rank], steps[rank], scale, exchanges[rank], backend)
        for rank in ranks
    ]
    for _, dkv, pending in backward:  # only now has every rank sent back what it owes
        collect(dkv, pending)

    def whole(like: torch.Tensor, parts: list[torch.Tensor]) -> torch.Tensor:
        result = torch.empty_like(like)
        for rows, part in zip(own, parts):
            result[rows] = part.to(like.dtype)
        return result

    dq, dk, dv = ([part[0] for part in backward], [part[1][0] for part in backward], [part[1][1] for part in backward])
    return whole(q_SND, [out for out, _ in forward]), whole(q_SND, dq), whole(k_SGD, dk), whole(v_SGD, dv)


class _SharedMemory:
    """Stands where the process group stands: every rank's keys are at hand, gradients wait in a mailbox."""

    max_pending: Optional[int] = None

    def __init__(self, keys: list[torch.Tensor], steps: list[RankSteps], rank: int) -> None:
        self.keys, self.steps, self.rank = keys, steps, rank
        self.mailbox: dict[tuple[int, int], torch.Tensor] = {}

    def fetch(self, kv_2TGD: torch.Tensor, steps: RankSteps, distance: int) -> Transfer:
        """See ring.KeyExchange."""
        if distance >= len(steps.ring):
            return Transfer(kv_2TGD[:, :0])
        source = (self.rank - distance) % len(self.keys)
        rows = torch.from_numpy(self.steps[source].ring[distance].send).to(kv_2TGD.device)
        return Transfer(self.keys[source].index_select(1, rows))

    def give_back(self, dkv: torch.Tensor, step: RingStep, distance: int) -> Transfer:
        """See ring.KeyExchange."""
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
