"""Faults of an object store, put into a process that sends checkpoints to a folder which stands for one (file://)."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from itertools import count
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tests.train_faults import Fault

STORES = ("store: refuses", "store: breaks off", "store: truncates", "kill: upload")
"""It refuses writes for a while; a write breaks off half-way; an object loses its tail and nobody is told; the sender is killed."""
_REFUSALS = 3
"""So many writes in a row, and as many more as the fault's number says, a store refuses."""


def put_in(fault: Fault) -> None:
    """Puts a fault into the writes of this process, from the one on that the fault names."""
    from fsspec.implementations.local import LocalFileSystem

    calls = count(1)
    for name in ("put_file", "pipe_file"):
        setattr(LocalFileSystem, name, _spoilt(getattr(LocalFileSystem, name), fault, calls))


def _spoilt(write: Callable[..., Any], fault: Fault, calls: count[int]) -> Callable[..., Any]:
    def spoilt(system: Any, first: str, second: Any, **options: Any) -> Any:
        """put_file(local, target), or pipe_file(target, content)."""
        call = next(calls)
        if fault.kind == "store: refuses" and fault.count <= call < 2 * fault.count + _REFUSALS:
            fault.fired()
            raise OSError("slow down")
        answer = write(system, first, second, **options)
        if fault.kind != "store: refuses" and call == fault.count:
            target = str(second if isinstance(second, str) else first)
            os.truncate(target, os.path.getsize(target) // 2)
            fault.fired()
            if fault.kind == "kill: upload":
                os.kill(os.getpid(), signal.SIGKILL)
            if fault.kind == "store: breaks off":
                raise OSError("connection reset by peer")
        return answer

    return spoilt
