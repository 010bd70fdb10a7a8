"""The interface that cpu.py, cuda.py and npu.py fill in. Nothing here touches a device."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional

import torch

from mindspeed_vita.platform.one_buffer import join, split
from mindspeed_vita.platform.tracing import TorchTracer, Tracer


@dataclass(frozen=True, kw_only=True)
class Capabilities:
    """What the rest of the package may ask of a device."""

    accelerator: bool
    """Tensors live outside host memory."""
    fused_optimizer: bool
    """torch.optim.AdamW(fused=True) has a kernel for this device."""
    pinned_memory: bool
    """Host buffers can be pinned for asynchronous copies."""


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Memory in bytes; peak counts from the start of the process (host) or of the device context."""

    peak: int
    """Highest use so far."""
    total: Optional[int]
    """Capacity; None where it is unknown."""


class Platform(ABC):
    """A device type as one process sees it."""

    name: str
    """cpu, cuda or npu."""
    device: torch.device
    """The device of this process."""
    collectives: str
    """Libraries of collectives, as torch.distributed names them. CPU tensors always go through gloo."""
    capabilities: Capabilities

    @abstractmethod
    def activate(self) -> None:
        """Make this process use `device` and make megatron.core run on it. Idempotent; call before models are built."""

    @abstractmethod
    def seed(self, seed: int) -> None:
        """Seed Python, numpy, torch on the host and the device's generator."""

    @abstractmethod
    def rng_state(self) -> dict[str, torch.Tensor]:
        """Generator states by name ("cpu", and the device where it has its own), as uint8 CPU tensors."""

    @abstractmethod
    def set_rng_state(self, state: dict[str, torch.Tensor]) -> None:
        """Restore what `rng_state` returned; names unknown to this device are left out (a checkpoint may come from another)."""

    @abstractmethod
    def device_count(self) -> int:
        """Devices of this kind on this host; a CPU counts as one."""

    @abstractmethod
    def memory(self) -> Memory:
        """Peak use and capacity."""

    @abstractmethod
    def synchronize(self) -> None:
        """Wait until everything queued on the device is done."""

    def mark(self) -> Any:
        """A point on the device's timeline, behind all that is queued so far."""
        return time.perf_counter()

    def seconds_between(self, start: Any, end: Any) -> float:
        """Seconds between two marks that the device has passed."""
        return float(end - start)

    def tracer(self, folder: Path, name: str) -> Tracer:
        """What records a trace of this process.

        Args:
            folder: where the trace goes; made when it is written.
            name: of the trace in it.
        """
        return TorchTracer(folder / f"{name}.json", [torch.profiler.ProfilerActivity.CPU])

    def to_device(self, values: torch.Tensor) -> torch.Tensor:
        """A host tensor on the device. From pinned memory, where the device has that, so that the host goes on meanwhile."""
        if self.capabilities.accelerator and not values.numel():
            return torch.empty(values.shape, dtype=values.dtype, device=self.device)  # nothing to copy
        pinned = self.capabilities.pinned_memory
        return (values.pin_memory() if pinned else values).to(self.device, non_blocking=pinned)

    def to_device_together(self, values: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Host tensors on the device by one copy, as views of one buffer. Where tensors live in host memory, each by itself."""
        if not self.capabilities.accelerator:
            return [self.to_device(tensor) for tensor in values]
        return split(self.to_device(join(values)), values)

    def host_work(self) -> AbstractContextManager[None]:
        """For work of a step on host tensors, such as the cut of a pack. The planner, whose device computes nothing, really does it."""
        return nullcontext()

    def describe_hardware(self) -> str:
        """Model of the device and version of what drives it, as far as they are known."""
        return self.name

    def device_name(self) -> str:
        """Model of the device as its driver names it; `name` where nobody does."""
        return self.name

    def describe(self) -> str:
        """One line for the start of a run."""
        return f"device: {self.device} ({self.name}), collectives: {self.collectives}"


def seed_host(seed: int) -> None:
    """Seed Python's, numpy's and torch's host generators."""
    import random

    import numpy as np

    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.random.default_generator.manual_seed(seed)


def host_memory() -> Memory:
    """Peak resident set of this process, and the host's memory."""
    import os
    import resource
    import sys

    unit = 1 if sys.platform == "darwin" else 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return Memory(peak=peak, total=total)
