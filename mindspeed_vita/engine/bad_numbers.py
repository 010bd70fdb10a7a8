"""Steps whose loss or gradient norm is not finite or far above the usual: how they are found, written down, and passed over.

The step itself asks all ranks for the worst of what they found, before the update (step.py). So all of them do the same.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from mindspeed_vita.checkpoint.native.step_folder import TrainState
from mindspeed_vita.choices import BadNumbers as Action
from mindspeed_vita.config import HealthConfig, Recipe
from mindspeed_vita.engine import metrics
from mindspeed_vita.engine.faults import calmer_settings

BAD_NUMBERS = "bad_numbers.jsonl"
"""File in the run's folder, with a line for each bad step."""
_WITHIN = 100
"""Steps in which health.most_bad_steps counts."""
_LEAST = 8
"""Good steps before a value can be called a spike."""
_WHAT = (
    "",
    "the loss is far above the usual",
    "the gradient norm is far above the usual",
    "the loss is not finite",
    "the gradient norm is not finite",
)
"""What a code means; the highest code of any rank counts."""


@dataclass(frozen=True)
class BadStep:
    """One bad step, the same on every rank."""

    step: int
    code: int
    loss: float
    grad_norm: float
    usual: tuple[float, float]
    """Medians of loss and gradient norm over the last good steps; nan where there were too few."""

    def describe(self) -> str:
        """For messages."""
        value, usual = ((self.loss, self.usual[0]), (self.grad_norm, self.usual[1]))[self.code % 2 == 0]
        compared = "" if math.isnan(usual) else f", usually {usual:.4g}"
        return f"step {self.step}: {_WHAT[self.code]} ({value:.4g}{compared})"


class BadNumbers:
    """What a run remembers about good and bad steps. Its state is part of a checkpoint, so that a resumed run decides the same.

    Args:
        health: the recipe's section.
        directory: of the run.
    """

    def __init__(self, health: HealthConfig, directory: Path) -> None:
        self.health, self.path = health, directory / BAD_NUMBERS
        self._recent: deque[tuple[float, float]] = deque(maxlen=health.spike_window)
        self.skipped: list[int] = []
        """Steps without an update."""
        self.rollbacks: list[int] = []
        """Steps from which the run went back."""

    def restore(self, state: TrainState) -> None:
        """Takes up the state of a checkpoint. Rollbacks that this run made since then are not forgotten."""
        self._recent.clear()
        self._recent.extend(state.recent_numbers)
        self.skipped = list(state.skipped_steps)
        self.rollbacks = self.rollbacks or list(state.rollbacks)

    def clean_file(self) -> None:
        """Drops the lines of the file that the state does not know of: their steps are made again, or the run was started again.

        Lines of steps that ended the run stay: they alone say which packs those were.
        """
        metrics.keep_lines(self.path, self._is_known)

    def _is_known(self, entry: dict[str, Any]) -> bool:
        if entry.get("action") == "stop":
            return True
        return entry.get("step") in (self.rollbacks if entry.get("action") == "roll_back" else self.skipped)

    def state(self) -> dict[str, Any]:
        """The fields of TrainState that are this object's."""
        recent = tuple(self._recent) if self.health.spike_factor else ()
        return {"recent_numbers": recent, "skipped_steps": tuple(self.skipped), "rollbacks": tuple(self.rollbacks)}

    def judge(self, loss: float, norm: float) -> int:
        """0, or the code of what is wrong with a step."""
        if not math.isfinite(norm):
            return 4
        if not math.isfinite(loss):
            return 3
        # so far above the usual as that many times a positive value is: an objective's loss may be negative
        limits = [usual + (self.health.spike_factor - 1) * abs(usual) for usual in self._usual()]
        return 2 if norm > limits[1] else 1 if loss > limits[0] else 0

    def good(self, loss: float, norm: float) -> None:
        """Remembers a step that was good."""
        self._recent.append((loss, norm))

    def bad(self, step: int, code: int, loss: float, norm: float) -> BadStep:
        """The bad step as a value."""
        return BadStep(step, code, loss, norm, self._usual())

    def action(self, step: int, *, can_roll_back: bool) -> Action:
        """What is done about a bad step: what the recipe says, or stop where that is not possible any more."""
        told = self.health.on_bad_numbers
        many = sum(step - _WITHIN < before for before in (*self.skipped, *self.rollbacks)) >= self.health.most_bad_steps
        return "stop" if many or (told == "roll_back" and not can_roll_back) else told

    def told(self, action: Action, folder: Path | None) -> str:
        """For people: what is done."""
        if action == "skip":
            return f"its update is left out ({self.path} names its packs)"
        return f"back to {folder}, to go on with the packs after this step ({self.path} names those that are passed over)"

    def advice(self, bad: BadStep, folder: Path | None, recipe: Recipe) -> str:
        """The message that a run ends with."""
        told = self.health.on_bad_numbers
        if told == "stop":
            why, other = "", "let the run pass over such steps with health.on_bad_numbers=skip or roll_back"
        elif folder is None and told == "roll_back":
            why, other = "there is no checkpoint to go back to; ", "save earlier (checkpoint.save_every)"
        else:
            why = f"{self.health.most_bad_steps} steps within {_WITHIN} were passed over already (health.most_bad_steps); "
            other = "raise that number"
        start = "start again" if folder is None else "continue"
        command = "" if folder is None else " (vita train RECIPE train.lr=... --resume-with-changes)"
        return f"{bad.describe()}; {why}{self.path} names its packs; {start} with {calmer_settings(recipe)}{command}, or {other}"

    def write(self, bad: BadStep, action: Action, packs: Sequence[tuple[int, Sequence[int]]]) -> None:
        """Adds a bad step's line to the file. One rank calls it.

        Args:
            bad: the step.
            action: what is done.
            packs: number and sample ids of each pack of the step, or of all packs that are passed over.

        Raises:
            OSError: the file cannot be written.
        """
        numbers = {"loss": bad.loss, "grad_norm": bad.grad_norm, "usual_loss": bad.usual[0], "usual_grad_norm": bad.usual[1]}
        # JSON has no nan
        told = {name: value if math.isfinite(value) else str(value) for name, value in numbers.items()}
        named = [{"pack": number, "samples": list(samples)} for number, samples in packs]
        metrics.append(self.path, [{"step": bad.step, "action": action, "why": _WHAT[bad.code], **told, "packs": named}])

    def _usual(self) -> tuple[float, float]:
        """Medians over the last good steps."""
        if not self.health.spike_factor or len(self._recent) < min(_LEAST, self.health.spike_window):
            return math.nan, math.nan
        return median(loss for loss, _ in self._recent), median(norm for _, norm in self._recent)
