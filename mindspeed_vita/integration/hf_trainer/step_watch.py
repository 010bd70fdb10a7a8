"""Tells the watchdog of each step and each save that transformers' Trainer makes."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from transformers import TrainerCallback

from mindspeed_vita.engine.watchdog import WatchedSteps


class StepWatch(TrainerCallback):
    """Looks for a hang from the beginning of the first step on: what Trainer loads before may take hours.

    Args:
        steps: what `watched` gives.
    """

    def __init__(self, steps: WatchedSteps) -> None:
        self._steps = steps
        self._open = ExitStack()

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """The first step begins."""
        self._beat = self._open.enter_context(self._steps())

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """A step was made."""
        self._beat()

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """A checkpoint was written."""
        self._beat()

    def close(self) -> None:
        """No step follows."""
        self._open.close()
