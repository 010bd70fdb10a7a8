"""Lines about which kernels serve: once per process and host, since what is installed may differ from host to host."""

from __future__ import annotations

import os
import socket
import sys

_said: set[str] = set()


def say_once(line: str) -> None:
    """Prints a line that was not printed before, on the first rank of this host; with the host's name where that is not rank 0."""
    if line in _said:
        return
    _said.add(line)
    rank = os.environ.get("RANK", "0")
    if os.environ.get("LOCAL_RANK", rank) == "0":
        print(line if rank == "0" else f"{socket.gethostname()}: {line}", file=sys.stderr, flush=True)
