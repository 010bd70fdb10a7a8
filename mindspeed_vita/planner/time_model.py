"""Time of a step by part: a rank's load divided by a device's constants. Nothing is fitted to a measured step; calibration.py scales."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from mindspeed_vita.planner.device import Device
from mindspeed_vita.planner.load import Load, Transfer


@dataclass(frozen=True, kw_only=True)
class StepTime:
    """Seconds of a step of one rank, by part."""

    matrix: float
    attention: float
    tower: float
    head: float
    memory: float
    """Operators between matrix products."""
    tensor: float
    """Collectives of tensor parallelism that nothing hides."""
    exchange: float
    ring: float
    """Keys that arrive later than attention needs them."""
    pipeline: float
    """Sending to the next stage and back."""
    bubble: float
    """Waiting for the pipeline to fill and to drain."""
    replicas: float
    """Reduction of gradients and gathering of weights."""
    optimizer: float

    def parts(self) -> dict[str, float]:
        """Seconds by part, in order."""
        return dict(vars(self))

    @property
    def seconds(self) -> float:
        """The whole step."""
        return sum(self.parts().values())


def step_time(load: Load, device: Device) -> StepTime:
    """Time of a step of a rank.

    Parts follow each other. Only the ring's transfers hide behind attention, and those of tensor parallelism
    behind matrix products where the load says so.
    """
    matrix = device.matrix_seconds(load.matrix.flops, load.matrix.calls)
    attention = device.attention_seconds(load.attention.flops, load.attention.calls)
    tensor = _seconds(load.tensor, device)
    busy = {
        "matrix": matrix,
        "attention": attention,
        "tower": device.matrix_seconds(load.tower.flops, load.tower.calls),
        "head": device.matrix_seconds(load.head.flops, load.head.calls),
        "memory": load.memory / device.memory_rate,
        "tensor": max(0.0, tensor - matrix) if load.tensor_overlaps else tensor,
        "exchange": _seconds(load.exchange, device),
        "ring": max(0.0, _seconds(load.ring, device) - attention),
        "pipeline": _seconds(load.pipeline, device),
    }
    return StepTime(
        **busy,
        bubble=sum(busy.values()) * load.idle / (1 - load.idle),
        replicas=_seconds(load.replicas, device),
        optimizer=load.optimizer / device.memory_rate,
    )


def _seconds(transfers: Iterable[Transfer], device: Device) -> float:
    return sum(transfer.seconds(device) for transfer in transfers)
