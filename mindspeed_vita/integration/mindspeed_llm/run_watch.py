"""What ends a run of MindSpeed-LLM early, by the built-in engine's code: stop signals, processes that die, and steps that hang."""

from __future__ import annotations

import signal
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from types import FrameType
from typing import Optional

import torch.distributed as dist

from mindspeed_vita.config import Recipe
from mindspeed_vita.data import pack_share
from mindspeed_vita.engine.stopping import StopRequest
from mindspeed_vita.engine.watchdog import Beat, WatchedSteps, watched
from mindspeed_vita.integration.mindspeed_llm.arguments import megatron_arguments
from mindspeed_vita.integration.mindspeed_llm.flags import TRACKER
from mindspeed_vita.integration.mindspeed_llm.high_availability import is_watched_by_mindio


class RunWatch:
    """One process's part. Megatron calls us at a few places only, so the blocks of the built-in engine are opened here, each at its place.

    Args:
        stop: what this process was told, and what all ranks agreed on.
        blocks: closed when the run is over.
    """

    def __init__(self, stop: StopRequest, blocks: ExitStack) -> None:
        self.stop, self._blocks = stop, blocks
        self._directory = ""
        self._steps: Optional[WatchedSteps] = None
        self._beat: Optional[Beat] = None

    def begin(self, recipe: Recipe) -> None:
        """There are process groups. From here on the end of any process ends all. Collective.

        Where MindIO watches the processes, it needs those that are left to write a checkpoint. Then it ends them itself.
        """
        if self._steps is None:
            self._directory = recipe.checkpoint.directory
            own = not is_watched_by_mindio(megatron_arguments())
            if not own and dist.get_rank() == 0:
                print("vita: MindIO watches the processes, so health.hang_minutes and health.lost_host_seconds have no effect", flush=True)
            block = watched(recipe, own=own, release=pack_share.remove_all, newest=lambda _: self.newest())
            self._steps = self._blocks.enter_context(block)

    def when_over(self, close: Callable[[], None]) -> None:
        """Calls a function when the run is over, also where it failed."""
        self._blocks.callback(close)

    def step_begins(self) -> None:
        """A step begins, or a held-out pack was measured. From the first one on a hang is noticed, and a signal lets the step finish."""
        if self._beat is None:
            assert self._steps is not None, "Megatron builds the model before it makes a step"
            self._blocks.enter_context(self.stop.finishing_steps())
            if is_watched_by_mindio(megatron_arguments()):
                self._hear_stop_signals()
            self._beat = self._blocks.enter_context(self._steps())
        self._beat()

    def _hear_stop_signals(self) -> None:
        """Puts a handler in the place of MindIO's, which ignores these signals.

        Only the first one is noted. A launcher sends more while MindIO saves, and MindIO must not be interrupted.
        """

        def note(number: int, frame: Optional[FrameType]) -> None:
            if not self.stop.asked:
                self.stop.receive(number)

        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, note)

    def step_ended(self) -> None:
        """The ranks have agreed on whether to stop. Megatron's --exit-interval makes it save this step and end."""
        if self._beat is not None:
            self._beat()
        if self.stop.agreed:
            megatron_arguments().exit_interval = 1

    def newest(self) -> Optional[Path]:
        """The checkpoint that the same command would continue from, or None."""
        tracker = Path(self._directory, TRACKER)
        if not self._directory or not tracker.is_file():
            return None
        step = tracker.read_text().strip()
        return tracker.with_name(f"iter_{int(step):07d}") if step.isdigit() else tracker.parent
