"""Faults for a process that trains, put in before it starts: each fires at the nth call of a function, or acts from outside."""

from __future__ import annotations

import errno
import os
import random
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from tests import store_faults
from tests.store_faults import STORES

KILLS = ("kill: any moment", "kill: save", "kill: publish", "kill: prune", "kill: exchange", "kill: data", "kill: log")
DISKS = ("disk: full", "disk: full at sync", "disk: read-only", "disk: slow")
OTHERS = ("stop and continue", "stop for ever", "error of a rank", "corrupted byte", "clock jump")
WITHOUT_STORE = (*KILLS, *DISKS, *OTHERS)
KINDS = (*WITHOUT_STORE, *STORES)
HARMLESS = ("disk: slow", "stop and continue", "clock jump", "store: refuses", "store: breaks off", "store: truncates")
"""A run goes on through these."""


@dataclass(frozen=True)
class Fault:
    """One fault of one start."""

    kind: str
    rank: int
    count: int
    """Call at which it fires, from 1."""
    moment: float
    """For faults from outside: part of the time that a whole run takes."""
    mark: str
    """File that is made when it fires."""

    @classmethod
    def draw(cls, kind: str, chance: random.Random, mark: str) -> Fault:
        """A fault of a kind, at a random place."""
        most = {"kill: save": 12, "kill: publish": 40, "kill: prune": 25, "kill: exchange": 150, "kill: data": 60, "kill: log": 12}
        most["error of a rank"] = 20
        alone = kind in ("kill: publish", "kill: prune", "kill: log", "disk: full at sync", "disk: read-only")  # the first rank's work
        return cls(kind, 0 if alone else chance.randrange(2), chance.randint(1, most.get(kind, 8)), chance.uniform(0.05, 0.9), mark)

    def fired(self) -> None:
        """Says that it fires."""
        os.close(os.open(self.mark, os.O_CREAT | os.O_WRONLY))

    def put_in(self) -> None:
        """Puts the fault into this process, if it is of this rank."""
        import builtins
        import pathlib
        import shutil

        import torch.distributed as dist

        from mindspeed_vita.checkpoint.native import shards
        from mindspeed_vita.data.dataset import PackDataset
        from mindspeed_vita.engine import metrics
        from mindspeed_vita.engine.step import Stepper

        places: dict[str, list[tuple[Any, str]]] = {
            "kill: save": [(shards, "write_tensors"), (pathlib.Path, "mkdir")],
            "kill: publish": [(os, "rename"), (os, "fsync"), (os, "replace")],
            "kill: prune": [(shutil, "rmtree"), (os, "unlink"), (os, "rmdir")],
            "kill: exchange": [(dist, "all_reduce"), (dist, "all_gather_object"), (dist, "reduce")],
            "kill: data": [(PackDataset, "encode")],
            "kill: log": [(metrics, "append"), (builtins, "print")],
            "disk: full": [(shards, "write_tensors")],
            "disk: full at sync": [(os, "fsync")],
            "disk: read-only": [(pathlib.Path, "mkdir"), (os, "rename")],
            "disk: slow": [(os, "fsync")],
            "error of a rank": [(Stepper, "run")],
            "clock jump": [(PackDataset, "encode")],
        }
        if self.kind in STORES:
            if int(os.environ["RANK"]) == self.rank or self.kind == "store: refuses":
                store_faults.put_in(self)
        elif int(os.environ["RANK"]) == self.rank or self.kind == "clock jump":
            calls = [0]
            for owner, name in places.get(self.kind, ()):
                setattr(owner, name, partial(self._spoilt, getattr(owner, name), calls) if not isinstance(owner, type) else
                        _method(self._spoilt, getattr(owner, name), calls))  # fmt: skip

    def _spoilt(self, function: Callable[..., Any], calls: list[int], *arguments: Any, **more: Any) -> Any:
        calls[0] += 1
        if self.kind == "disk: slow":
            self.fired()
            time.sleep(0.05)
        elif calls[0] == self.count:
            self.fired()
            self._act()
        elif calls[0] > self.count and self.kind == "disk: read-only":
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        return function(*arguments, **more)

    def _act(self) -> None:
        if self.kind.startswith("kill"):
            os.kill(os.getpid(), signal.SIGKILL)
        elif self.kind == "clock jump":
            now = time.time
            time.time = lambda: now() + 400 * 24 * 3600  # type: ignore[assignment]
        elif self.kind == "error of a rank":
            raise ValueError("this rank alone")
        else:
            number = errno.EROFS if self.kind == "disk: read-only" else errno.ENOSPC
            raise OSError(number, os.strerror(number))


def _method(spoilt: Callable[..., Any], function: Callable[..., Any], calls: list[int]) -> Callable[..., Any]:
    """A function in the place of a method."""
    return lambda self, *arguments, **more: spoilt(function, calls, self, *arguments, **more)
