"""The line of metrics.jsonl about a training step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from mindspeed_vita.config import Recipe, TrainConfig
from mindspeed_vita.engine.metrics import with_report
from mindspeed_vita.engine.step import StepResult


def step_entry(
    step: int, result: StepResult, recipe: Recipe, *, rate: float, seconds: float, **further: Any
) -> dict[str, Any]:
    """The line, without what only the run knows.

    Args:
        step: its number, from 1.
        result: what it did.
        recipe: the run.
        rate: the recipe's learning rate in this step.
        seconds: that it took.
        further: numbers under their own keys.
    """
    told = asdict(result)
    tiles, report, _ = (told.pop(name) for name in ("tiles", "report", "bad"))
    tokens = recipe.train.global_batch * recipe.data.seq_length
    entry: dict[str, Any] = {"step": step, **told, "lr": rate, "seconds": seconds, "tokens_per_second": tokens / seconds}
    entry.update(tiles_per_second=tiles / seconds, **further)
    entry.update({f"lr/{module}": rate * multiplier for module, multiplier in _own_rates(recipe.train).items()})
    return with_report(entry, report)


def _own_rates(train: TrainConfig) -> Mapping[str, float]:
    """Multiplier of the learning rate by module that trains, for those whose rate is not the recipe's. Layer decay comes on top."""
    multipliers = {"vision": train.vision_lr_mult, "projector": train.projector_lr_mult, "language": train.language_lr_mult}
    return {module: multiplier for module, multiplier in multipliers.items() if module in train.modules and multiplier != 1}
