"""Times of a plan: the step of each traced rank on a device, and what follows for the whole run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Optional

from mindspeed_vita.config import Recipe
from mindspeed_vita.planner.calibration import calibrated, factors
from mindspeed_vita.planner.device import Device
from mindspeed_vita.planner.time_model import StepTime, step_time
from mindspeed_vita.planner.trace.result import Trace
from mindspeed_vita.planner.traced_load import traced_load


@dataclass(frozen=True, kw_only=True)
class Timing:
    """A layout's times. The slowest of its stages sets the step."""

    device: Device
    ranks: tuple[StepTime, ...]
    """One for each traced rank, not calibrated."""
    scale: Optional[Mapping[str, float]]
    """See calibration.factors; None: nothing was measured."""
    tokens: int
    """Of a step, over all devices."""
    world: int
    steps: int
    """Of the stage."""
    model_flops: float
    """Of a step, for each device on average."""

    @property
    def modelled(self) -> float:
        """Seconds of a step, not calibrated."""
        return max(time.seconds for time in self.ranks)

    @property
    def seconds(self) -> float:
        """Seconds of a step: calibrated if a step was measured."""
        return max(time.seconds for time in self.times)

    @property
    def times(self) -> tuple[StepTime, ...]:
        """The ranks' times: calibrated if a step was measured."""
        return self.ranks if self.scale is None else tuple(calibrated(time, self.scale) for time in self.ranks)

    def speed(self, seconds: float) -> float:
        """Tokens per second and device, for a step of this time."""
        return self.tokens / seconds / self.world

    def utilisation(self, seconds: float) -> float:
        """Share of the devices' peak that the model's own FLOPs take (MFU), for a step of this time."""
        return self.model_flops / (seconds * self.device.peak_flops)


def time_layout(
    recipe: Recipe,
    world: int,
    traces: Sequence[Trace],
    device: Device,
    *,
    measured: Optional[Mapping[str, float]] = None,
    scale: Optional[Mapping[str, float]] = None,
) -> Timing:
    """Times of a layout from traces of its kinds of stages.

    Args:
        recipe: with that layout.
        world: number of devices.
        traces: in the order of trace.step.stage_ranks.
        device: its constants.
        measured: seconds of this layout; see calibration.read_calibration.
        scale: factors that another layout's measurement gave.

    Raises:
        ValueError: see calibration.factors.
    """
    loads = [traced_load(recipe, world, trace) for trace in traces]
    ranks = tuple(step_time(load, device) for load in loads)
    if measured:
        scale = factors(max(ranks, key=lambda time: time.seconds), measured)
    stages = recipe.parallel.pp
    counts = [1] * len(loads) if len(loads) != 3 else [1, stages - 2, 1]
    flops = sum(load.model_flops * count for load, count in zip(loads, counts)) / sum(counts)
    return Timing(
        device=device,
        ranks=ranks,
        scale=scale,
        tokens=recipe.train.global_batch * recipe.data.seq_length,
        world=world,
        steps=recipe.train.steps,
        model_flops=flops,
    )
