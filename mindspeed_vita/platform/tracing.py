"""What records a trace of this process and writes it where a person can open it. npu.py has torch_npu's."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import torch


class Tracer(Protocol):
    """Records everything between `start` and `finish`."""

    def start(self) -> None:
        """Starts to record."""

    def finish(self) -> Path:
        """Stops, writes the trace and returns its file.

        Raises:
            OSError: it cannot be written.
        """


class TorchTracer:
    """torch's own profiler. Its trace is JSON that Perfetto and Chrome's tracing page open.

    Args:
        path: file of the trace, which replaces one that is there.
        activities: what is recorded.
    """

    def __init__(self, path: Path, activities: Sequence[torch.profiler.ProfilerActivity]) -> None:
        self._path = path
        self._profile = torch.profiler.profile(activities=activities)

    def start(self) -> None:
        """See Tracer."""
        self._profile.start()

    def finish(self) -> Path:
        """See Tracer."""
        self._profile.stop()
        self._path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self._path.with_name(f"{self._path.name}.{os.getpid()}.tmp")
        self._profile.export_chrome_trace(str(temporary))
        os.replace(temporary, self._path)  # a trace that is there is whole
        return self._path
