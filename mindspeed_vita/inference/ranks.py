"""How rank 0 tells the other ranks what to do, and how all ranks learn that one of them is gone or hangs.

Nothing else is shared between them: no rank decides anything on its own.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, Optional

import torch
import torch.distributed as dist

TIMEOUT = 600.0
"""Seconds that a rank waits for another one, by default."""
_LONGEST_SILENCE = 30.0
"""Most seconds between two messages of the first rank."""
_LOST = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "Connection refused")
"""What gloo says when the process at the other end is gone."""
_LATE = ("Timed out waiting", "Application timeout")
"""What gloo says when the process at the other end does not answer."""


class Ranks:
    """Messages from the first rank of a group to all others.

    They travel over a group of their own, by gloo. While the first rank has nothing to say, a thread of it sends beats, so that the others
    can tell a rank that waits for its user from one that hangs. Made on all processes of the world at once.

    Args:
        groups: of one model's ranks: all that they compute together over. The first one holds all of them: tp x cp, all processes.
        size: how many ranks.
        rank: this one's place in the first group.
        timeout: seconds that a rank waits for another one.

    Raises:
        ValueError: a timeout that is not above zero.
    """

    def __init__(self, groups: Sequence[Any], size: int, rank: int, timeout: float = TIMEOUT) -> None:
        if not timeout > 0:
            raise ValueError(f"rank_timeout is {timeout:g}; expected more than 0 seconds")
        self.size, self.rank, self.timeout = size, rank, timeout
        self.group = None
        self._lock, self._computing, self._last = threading.Lock(), False, time.monotonic()
        self._resting: Optional[threading.Event] = None
        self._problem: Optional[ConnectionError] = None
        if size > 1:
            limit = timedelta(seconds=timeout)
            self.group = dist.new_group(dist.get_process_group_ranks(groups[0]), backend="gloo", timeout=limit)
            for group in groups:  # they were made with the time that loading may take
                dist.distributed_c10d._set_pg_timeout(limit, group)

    @property
    def first(self) -> bool:
        """Whether this rank decides."""
        return self.rank == 0

    def lead(self) -> None:
        """From here on the others are told at least every few seconds that this rank is alive, until `rest`. First rank only."""
        assert self.first
        if self.size > 1 and self._resting is None:
            self._resting = threading.Event()
            threading.Thread(target=self._beat, args=(self._resting,), name="vita-beat", daemon=True).start()

    def rest(self) -> None:
        """Ends what `lead` began."""
        if self._resting is not None:
            self._resting.set()
            self._resting = None

    def tell(self, message: Any, what: str = "telling the other ranks what comes next") -> None:
        """Sends a message to every other rank. First rank only; each call meets one `hear` on every other rank.

        Args:
            message: what they hear.
            what: what this is, for the message of an error.

        Raises:
            ConnectionError: another rank is gone or hangs.
        """
        assert self.first
        with self._lock:
            if self._problem is not None:
                raise self._problem
            self._broadcast([message], what)
            self._last = time.monotonic()

    def beat(self) -> None:
        """Sends a beat; ConnectionError as `tell`."""
        self.tell(_BEAT)

    def hear(self) -> Any:
        """Waits for the next message that is no beat. Not on the first rank.

        Raises:
            ConnectionError: the first rank is gone, or said nothing for too long.
        """
        assert not self.first
        while True:
            held: list[Any] = [None]
            self._broadcast(held, "waiting for word from the first rank")
            if held[0] != _BEAT:
                return held[0]

    @contextmanager
    def together(self, what: str) -> Iterator[None]:
        """Around what all ranks do together.

        Args:
            what: what this is, for the message.

        Raises:
            ConnectionError: another rank ended meanwhile, or let this one wait for too long. Nothing can be answered any more.
        """
        self._computing = True
        try:
            with self.explained(what):
                yield
        finally:
            self._computing, self._last = False, time.monotonic()

    @contextmanager
    def explained(self, what: str, limit: Optional[float] = None) -> Iterator[None]:
        """Says what a failed exchange with other ranks means.

        Args:
            what: what this rank does, for the message.
            limit: seconds that it waits, where it is not the timeout of these ranks.

        Raises:
            ConnectionError: another rank is gone or hangs.
        """
        try:
            yield
        except RuntimeError as error:
            said = str(error)
            if self.size > 1 and any(sign in said for sign in _LATE):
                remedy = ", or allow more time with --rank-timeout" if limit is None else ""
                raise ConnectionError(
                    f"rank {self.rank} was {what} and got no answer from another rank for {limit or self.timeout:g} seconds: that one "
                    f"hangs or was stopped. All ranks end. Look at the processes of this run{remedy}"
                ) from error
            if self.size > 1 and (isinstance(error, dist.DistBackendError) or any(sign in said for sign in _LOST)):
                raise ConnectionError(
                    f"another rank ended while rank {self.rank} was {what}; see what it said, and start all again"
                ) from error
            raise

    def _beat(self, resting: threading.Event) -> None:
        silence = min(_LONGEST_SILENCE, self.timeout / 4)
        while not resting.wait(silence / 2):
            with self._lock:
                # while all compute, nobody listens
                if resting.is_set() or self._computing or time.monotonic() - self._last < silence:
                    continue
                try:
                    self._broadcast([_BEAT], "telling the other ranks that it is alive")
                except ConnectionError as error:  # raised by the next tell
                    self._problem = error
                    return
                self._last = time.monotonic()

    def _broadcast(self, held: list[Any], what: str) -> None:
        if self.size > 1:
            source = dist.get_process_group_ranks(self.group)[0]
            with self.explained(what):
                dist.broadcast_object_list(held, src=source, group=self.group, device=torch.device("cpu"))


_BEAT = ("beat",)
