"""The line of metrics.jsonl about a training step. All engines make it here, so all have the same keys."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Optional

import torch.distributed as dist

from mindspeed_vita.config import SUPERVISED, Recipe, TrainConfig
from mindspeed_vita.engine.metrics import with_report
from mindspeed_vita.engine.step import StepResult
from mindspeed_vita.engine.work import peak_of, speeds
from mindspeed_vita.platform import Platform


@dataclass(frozen=True, kw_only=True)
class StepTimes:
    """What a step took on the rank that writes the line."""

    seconds: float
    """From its first pack to its update."""
    data_seconds: float
    """Waits for packs."""
    parts: Mapping[str, float] = field(default_factory=dict)
    """Seconds of parts of the step, and the gradient norm of each module, under their keys."""


class StepEntries:
    """Makes the lines of one run.

    Args:
        recipe: the run.
        platform: this rank's device.
    """

    def __init__(self, recipe: Recipe, platform: Platform) -> None:
        self._recipe, self._platform = recipe, platform
        # the table is of bf16
        self._peak = peak_of(platform.device_name(), recipe.logging.peak_tflops) if recipe.train.precision == "bf16" else None

    def entry(self, step: int, result: StepResult, times: StepTimes, *, rate: float, packs: Optional[int] = None) -> dict[str, Any]:
        """The line of one step.

        Args:
            step: its number, from 1.
            result: what it did.
            times: what it took.
            rate: the recipe's learning rate in this step.
            packs: consumed so far; None: a global batch in each step.

        Raises:
            ValueError: the objective reports something under a key of the line.
        """
        told, recipe, seconds = asdict(result), self._recipe, times.seconds
        tiles, report, _ = (told.pop(name) for name in ("tiles", "report", "bad"))
        tokens = recipe.train.global_batch * recipe.data.seq_length
        return with_report(
            {
                "step": step,
                **told,
                "lr": rate,
                **self._share(result.supervised, tokens),
                **{f"lr/{module}": rate * multiplier for module, multiplier in _own_rates(recipe.train).items()},
                "seconds": seconds,
                "tokens_per_second": tokens / seconds,
                "tiles_per_second": tiles / seconds,
                "data_seconds": times.data_seconds,
                **times.parts,
                "packs": step * recipe.train.global_batch if packs is None else packs,
                "memory": self._platform.memory().peak,
                **speeds(result.flops, seconds, dist.get_world_size(), self._peak),
            },
            report,
        )

    def _share(self, supervised: int, tokens: int) -> dict[str, float]:
        """The share of supervised tokens, where the loss is divided by their number."""
        counts_tokens = self._recipe.train.objective == SUPERVISED and self._recipe.data.loss_weighting == "token"
        return {"supervised_share": supervised / tokens} if counts_tokens else {}


def _own_rates(train: TrainConfig) -> Mapping[str, float]:
    """Multiplier of the learning rate by module that trains, for those whose rate is not the recipe's. Layer decay comes on top."""
    multipliers = {"vision": train.vision_lr_mult, "projector": train.projector_lr_mult, "language": train.language_lr_mult}
    return {module: multiplier for module, multiplier in multipliers.items() if module in train.modules and multiplier != 1}
