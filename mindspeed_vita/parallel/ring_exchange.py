"""How keys, values and their gradients travel between the ranks of a ring.

Inside a node each rank is sent what its queries need. Across the border of a node, keys go once to the rank with the sender's number in the
other node, which holds them for all ranks there and passes them on. Gradients return the same way: the rank that held the keys adds up
what its node computed, and the sum crosses the border once.
Shapes: T tokens of this rank, H keys that it holds in a round, G key heads, D width of a head.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import gcd
from typing import Any, Optional, Protocol

import torch
import torch.distributed as dist

from mindspeed_vita.ops.attention.blocks import on_device
from mindspeed_vita.sharding.ring_steps import RingStep, Round


class Transfer:
    """A transfer under way; keeps what is sent alive until it is done."""

    def __init__(self, received: torch.Tensor, sent: Optional[torch.Tensor] = None, works: tuple[Any, ...] = ()) -> None:
        self.received, self.sent, self.works = received, sent, works

    def wait(self) -> torch.Tensor:
        """What arrived."""
        for work in self.works:
            work.wait()
        return self.received


@dataclass(frozen=True)
class Channel:
    """Ranks that send to each other, each to the one that lies some ranks ahead.

    Attributes:
        group: their process group.
        second: None, or another process group of the same ranks. Then every other transfer of a chain rank, rank + distance, ... goes
            through it, so that what a rank sends and what it receives are in different groups.
    """

    group: Any
    second: Any = None

    def swap(self, outgoing: torch.Tensor, num_incoming: int, distance: int) -> Transfer:
        """Sends keys and values [2, num_outgoing, G, D] to rank + distance, and receives num_incoming of them from rank - distance."""
        assert outgoing.numel() == num_incoming == 0 or 0 < abs(distance) < dist.get_world_size(self.group), "the plan is for other nodes"
        ranks, rank = dist.get_process_group_ranks(self.group), dist.get_rank(self.group)
        incoming = outgoing.new_empty((2, num_incoming, *outgoing.shape[2:]))
        batches: dict[bool, list[dist.P2POp]] = {False: [], True: []}
        for operation, tensor, sender in ((dist.isend, outgoing, rank), (dist.irecv, incoming, (rank - distance) % len(ranks))):
            if tensor.numel():
                other = ranks[(rank + distance) % len(ranks)] if operation is dist.isend else ranks[sender]
                in_second = self.second is not None and alternates(sender, distance, len(ranks))
                batches[in_second].append(dist.P2POp(operation, tensor, other, self.second if in_second else self.group))
        # every rank starts the transfers of the first group before those of the second, so none waits for one that was not started
        works = tuple(work for batch in batches.values() if batch for work in dist.batch_isend_irecv(batch))
        return Transfer(incoming, outgoing, works)


def alternates(sender: int, distance: int, size: int) -> bool:
    """Whether the transfer from a rank to rank + distance is an odd one on its chain, counted from the chain's lowest rank.

    The chain closes after size / gcd(size, distance) transfers. If that number is odd, one rank of the chain sends and receives even ones.
    """
    step = gcd(distance, size)
    length = size // step
    number = sender // step * pow(distance // step, -1, length) % length
    return number % 2 == 1


class KeyExchange(Protocol):
    """Moves keys, values and their gradients between the ranks of a context-parallel group."""

    max_pending: Optional[int]
    """Gradients on their way back that may wait at a time; None: none arrives before every rank is done."""
    gradients: torch.dtype
    """In which gradients travel. They add up in fp32."""

    def cross(self, kv_2TGD: torch.Tensor, rounds: tuple[Round, ...], number: int) -> Transfer:
        """Keys and values that this rank holds in a round, [2, num_held, G, D], against those of ours that another node needs."""

    def fetch(self, held_2HGD: torch.Tensor, ring: tuple[RingStep, ...], distance: int) -> Transfer:
        """Keys and values from node rank - distance, [2, num_received, G, D], against held ones that node rank + distance needs."""

    def give_back(self, dkv: torch.Tensor, step: RingStep, distance: int) -> Transfer:
        """Gradients of fetched keys return to node rank - distance, against those of held keys from node rank + distance."""

    def cross_back(self, dkv: torch.Tensor, held: Round, number: int) -> Transfer:
        """Gradients of a round's held keys return to their node, against those of ours from the node that held them."""


class GroupKeyExchange:
    """A KeyExchange by point-to-point transfers. All ranks start the same transfers in the same order.

    Args:
        inside: the ring ranks of this rank's node.
        across: the ring ranks with its node rank, one per node; None where all ranks are in one node.
        gradients: in which gradients travel.
    """

    max_pending: Optional[int] = 2

    def __init__(self, inside: Channel, across: Optional[Channel] = None, gradients: torch.dtype = torch.float32) -> None:
        self.inside, self.across, self.gradients = inside, across, gradients

    def cross(self, kv_2TGD: torch.Tensor, rounds: tuple[Round, ...], number: int) -> Transfer:
        """See KeyExchange."""
        if number >= len(rounds):
            return Transfer(kv_2TGD[:, :0])
        assert self.across is not None, "a plan of several nodes needs a channel between them"
        held = rounds[number]
        return self.across.swap(kv_2TGD.index_select(1, on_device(held.send, kv_2TGD.device)), held.num_held, number)

    def fetch(self, held_2HGD: torch.Tensor, ring: tuple[RingStep, ...], distance: int) -> Transfer:
        """See KeyExchange."""
        if distance >= len(ring):
            return Transfer(held_2HGD[:, :0])
        step = ring[distance]
        return self.inside.swap(held_2HGD.index_select(1, on_device(step.send, held_2HGD.device)), step.num_received, distance)

    def give_back(self, dkv: torch.Tensor, step: RingStep, distance: int) -> Transfer:
        """See KeyExchange."""
        return self.inside.swap(dkv, len(step.send), -distance)

    def cross_back(self, dkv: torch.Tensor, held: Round, number: int) -> Transfer:
        """See KeyExchange."""
        assert self.across is not None, "a plan of several nodes needs a channel between them"
        return self.across.swap(dkv, len(held.send), -number)
