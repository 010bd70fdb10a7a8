"""How a run of the built-in engine ended."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Optional

from mindspeed_vita.checkpoint.gates import Gate


@dataclass(frozen=True, kw_only=True)
class TrainResult:
    """How a run ended."""

    step: int
    """Steps done."""
    first_loss: Optional[float]
    """Loss of the run's first step (rank 0 remembers it over restarts)."""
    last_loss: Optional[float]
    tokens_per_second: float
    """Mean over this process's steps but the first, all ranks together; 0 when it made none."""
    checkpoint: Path
    """The step folder written last."""
    peak_memory: int
    """Highest use of any rank, bytes."""
    layout: str
    """tp, pp, cp, dp."""
    stopped_by: int
    """Number of the signal that ended the run after `step`, which is saved; 0: the run reached the step it was to reach."""
    held_out: tuple[tuple[int, float], ...] = ()
    """(step, held-out loss) of every evaluation, those before a restart too."""
    best: Optional[int] = None
    """Step with the lowest held-out loss."""
    stopped_early: bool = False
    """eval.patience ended the run before train.steps."""
    gate: Optional[Gate] = None
    """That of the held-out loss, where the run ended and eval.gate sets a bound."""
