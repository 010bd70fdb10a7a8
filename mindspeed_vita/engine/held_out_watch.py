"""What a run makes of its held-out losses: when to measure, which step is the best, when to stop, and the gate at the end."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Optional

from mindspeed_vita.checkpoint.gates import Gate
from mindspeed_vita.config import Recipe
from mindspeed_vita.engine.metrics import HELD_OUT_LOSS

PACKS = "eval/data"
"""Key of the identity of the packs that a line is about. Losses of other packs are not compared."""
GATE = "held_out_loss"
"""Name of the gate."""


class HeldOutWatch:
    """The held-out losses of a run, by step. Every rank has the same ones, so every rank decides the same.

    Args:
        recipe: the run.
        identity: of the packs (HeldOutPacks.identity).
        lines: of metrics.jsonl up to the step that the run continues from.
    """

    def __init__(self, recipe: Recipe, identity: str, lines: Iterable[Mapping[str, Any]] = ()) -> None:
        self.recipe, self.identity = recipe, identity
        self.losses: dict[int, float] = {line["step"]: line[HELD_OUT_LOSS] for line in lines if line.get(PACKS) == identity}
        """Step -> loss, in the order of the steps."""

    def due(self, step: int) -> bool:
        """Whether a step is to be measured and was not yet."""
        if step in self.losses:
            return False
        if step == 0:
            return self.recipe.eval.at_start
        return step % self.recipe.eval.every == 0 or step == self.recipe.train.steps

    def add(self, step: int, loss: float) -> bool:
        """Takes a measured loss down; returns whether it is the lowest so far."""
        before = self.best
        self.losses[step] = loss
        return self.best != before

    @property
    def best(self) -> Optional[int]:
        """The step with the lowest loss, the first of equal ones. Step 0 is the start, and takes no part."""
        return _best(self.losses)

    @property
    def exhausted(self) -> bool:
        """Whether as many evaluations in a row as eval.patience allows found no new lowest loss."""
        return exhausted(self.losses, self.recipe.eval.patience)

    def gate(self, step: int) -> Optional[Gate]:
        """The gate of a measured step; None where the recipe has none."""
        bound = self.recipe.eval.gate
        if not bound:
            return None
        detail = f"{self.recipe.eval.mixture}, packs {self.identity}"
        return Gate(name=GATE, measured=self.losses[step], bound=bound, better="lower", detail=detail)


def exhausted(losses: Mapping[int, float], patience: int) -> bool:
    """Whether as many evaluations in a row as eval.patience allows found no new lowest loss.

    Args:
        losses: by step. Step 0 is the start, and takes no part.
        patience: of the recipe; 0: any number is allowed.
    """
    best = _best(losses)
    return 0 < patience <= sum(best is None or step > best for step in losses if step)


def _best(losses: Mapping[int, float]) -> Optional[int]:
    trained = {step: loss for step, loss in losses.items() if step and loss == loss}
    return min(trained, key=lambda step: trained[step]) if trained else None
