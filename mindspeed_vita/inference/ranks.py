"""How rank 0 tells the other ranks what to do. Nothing else is shared between them: no rank decides anything on its own."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist


class Ranks:
    """Messages from the first rank of a group to all others.

    Args:
        group: the ranks of one model, tp x cp.
        size: how many.
        rank: this one's place in the group.
    """

    def __init__(self, group: Any, size: int, rank: int) -> None:
        self.group, self.size, self.rank = group, size, rank

    @property
    def first(self) -> bool:
        """Whether this rank decides."""
        return self.rank == 0

    def tell(self, message: Any) -> None:
        """Sends a message to every other rank. First rank only; each call meets one `hear` on every other rank."""
        assert self.first
        self._broadcast([message])

    def hear(self) -> Any:
        """Waits for the next message. Not on the first rank."""
        assert not self.first
        held: list[Any] = [None]
        self._broadcast(held)
        return held[0]

    def _broadcast(self, held: list[Any]) -> None:
        if self.size > 1:
            source = dist.get_process_group_ranks(self.group)[0]
            dist.broadcast_object_list(held, src=source, group=self.group, device=torch.device("cpu"))
