"""Bytes that the writer threads of the ranks exchange through the process group's store: collectives belong to the threads that train."""

from __future__ import annotations

import time

import torch.distributed as dist

from mindspeed_vita.checkpoint.native.ranks import rank, world

_SHORTEST, _LONGEST = 0.001, 0.25
"""Seconds between two looks into the store."""


class Mail:
    """One exchange: each rank tells the first one something, and the first one answers all. All ranks make them in the same order."""

    def __init__(self) -> None:
        self._rank, self._world = rank(), world()
        if self._world > 1:
            self._store = dist.distributed_c10d._get_default_store()
            self._key = f"vita/mail/{self._store.add(f'vita/mail/turns/{self._rank}', 1)}"

    def to_first(self, value: bytes) -> list[bytes]:
        """Gives the value of each rank to the first one; an empty list on the others."""
        if self._rank:
            self._store.set(f"{self._key}/{self._rank}", value)  # type: ignore[arg-type]  # bytes are taken, too
            return []
        values = [value]
        for other in range(1, self._world):
            values.append(self._read(f"{self._key}/{other}"))
            self._store.delete_key(f"{self._key}/{other}")
        return values

    def from_first(self, value: bytes) -> bytes:
        """Gives the first rank's value to all."""
        if self._world == 1:
            return value
        answer, readers = f"{self._key}/answer", f"{self._key}/readers"
        if not self._rank:
            self._store.set(answer, value)  # type: ignore[arg-type]
            return value
        value = self._read(answer)
        if self._store.add(readers, 1) == self._world - 1:
            self._store.delete_key(answer)
            self._store.delete_key(readers)
        return value

    def _read(self, key: str) -> bytes:
        # not a wait in the store: that would keep other threads of this process from using it
        pause = _SHORTEST
        while not self._store.check([key]):
            time.sleep(pause)
            pause = min(2 * pause, _LONGEST)
        return bytes(self._store.get(key))
