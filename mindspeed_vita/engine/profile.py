"""The profiler's window of a run: the steps that the recipe's profile section asks for, as a trace in the run's folder."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Optional

from mindspeed_vita.config import ProfileConfig
from mindspeed_vita.platform import Platform
from mindspeed_vita.platform.phases import recording
from mindspeed_vita.platform.tracing import Tracer

FOLDER = "profile"
"""In the run's folder."""


class ProfileWindow:
    """Records this rank's steps inside the window. Does nothing where the recipe asks for no trace, or for one of other ranks.

    Only steps are named. What a run does between two of them, such as a save or an evaluation, is in the trace without a phase.

    Args:
        config: steps and ranks.
        platform: this rank's device.
        directory: the run's folder.
        rank: this process's.
    """

    def __init__(self, config: ProfileConfig, platform: Platform, directory: Path, rank: int) -> None:
        first, last = config.steps or (0, 0)
        self._steps = range(first, last + 1) if config.steps and rank in config.ranks else range(0)
        self._platform, self._folder, self._rank = platform, directory / FOLDER, rank
        self._tracer: Optional[Tracer] = None
        self._done = 0

    @contextmanager
    def step(self, step: int) -> Iterator[None]:
        """Around a step. The first one of the window starts the profiler, its last one writes the trace."""
        if step not in self._steps:
            yield
            return
        if self._tracer is None:  # a run may continue in the middle of its window
            self._tracer = self._platform.tracer(self._folder, f"step_{step:07d}_rank_{self._rank}")
            self._tracer.start()
        with recording(step):
            yield
        self._done = step
        if step == self._steps[-1]:
            self.close()

    def close(self) -> None:
        """Writes the trace of a run that ends inside its window. A trace that cannot be written does not end a run: a line says so."""
        tracer, self._tracer = self._tracer, None
        if tracer is None:
            return
        try:
            line = f"profile: steps up to {self._done} in {tracer.finish()}"
        except OSError as error:
            line = f"profile: no trace of rank {self._rank} was written: {error}"
        print(line, file=sys.stderr, flush=True)
