"""How rank 0 tells the other ranks what to do. Nothing else is shared between them: no rank decides anything on its own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

_PATIENCE = timedelta(days=30)
"""How long a rank waits for the next message: between two requests as long as it takes."""
_LOST = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "Connection refused")
"""What gloo says when the process at the other end is gone."""


class Ranks:
    """Messages from the first rank of a group to all others.

    They travel over a group of their own, by gloo: the others wait for them without a limit. Made on all processes of the world at once.

    Args:
        group: the ranks of one model, tp x cp: all processes.
        size: how many.
        rank: this one's place in the group.
    """

    def __init__(self, group: Any, size: int, rank: int) -> None:
        self.size, self.rank = size, rank
        self.group = dist.new_group(dist.get_process_group_ranks(group), backend="gloo", timeout=_PATIENCE) if size > 1 else None

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

    @contextmanager
    def together(self) -> Iterator[None]:
        """Around what all ranks do together.

        Raises:
            ConnectionError: another rank ended meanwhile. Nothing can be answered any more.
        """
        try:
            yield
        except RuntimeError as error:
            if self.size > 1 and (isinstance(error, dist.DistBackendError) or any(sign in str(error) for sign in _LOST)):
                raise ConnectionError("another rank ended while all were computing; see what it said, and start all again") from error
            raise

    def _broadcast(self, held: list[Any]) -> None:
        if self.size > 1:
            source = dist.get_process_group_ranks(self.group)[0]
            with self.together():
                dist.broadcast_object_list(held, src=source, group=self.group, device=torch.device("cpu"))
