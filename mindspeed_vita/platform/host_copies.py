"""Copies of device tensors in host memory, made and fetched while the device computes. The CUDA and Ascend part was not run on hardware."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any, Protocol

import torch

Wait = Callable[[], None]


class HostCopies(Protocol):
    """What moves tensors between a device and its host."""

    def to_host(self, tensor: torch.Tensor) -> torch.Tensor:
        """A copy in host memory, under way. The device's tensor may be released at once, and must not be changed afterwards."""

    def fetch(self, host: torch.Tensor, into: torch.Tensor) -> Wait:
        """Starts to copy a result of `to_host` back into a tensor of the device. Call what it returns before the tensor is read."""


class PlainCopies:
    """On a CPU the host's memory is the device's: copies are made at once, and nothing is saved."""

    def to_host(self, tensor: torch.Tensor) -> torch.Tensor:
        """See HostCopies."""
        return tensor.clone()

    def fetch(self, host: torch.Tensor, into: torch.Tensor) -> Wait:
        """See HostCopies."""
        into.copy_(host)
        return lambda: None


class PinnedCopies:
    """Through pinned memory and a stream of its own, so that the device computes meanwhile. Not run on hardware.

    Args:
        device: a CUDA device or an NPU.
    """

    def __init__(self, device: torch.device) -> None:
        self._module: Any = torch.get_device_module(device)
        self._stream = self._module.Stream(device=device)

    def to_host(self, tensor: torch.Tensor) -> torch.Tensor:
        """See HostCopies."""
        host = torch.empty_like(tensor, device="cpu", pin_memory=True)
        self._stream.wait_stream(self._module.current_stream())
        with self._module.stream(self._stream):
            host.copy_(tensor, non_blocking=True)
        tensor.record_stream(self._stream)  # its memory is not given away before the copy is done
        return host

    def fetch(self, host: torch.Tensor, into: torch.Tensor) -> Wait:
        """See HostCopies."""
        self._stream.wait_stream(self._module.current_stream())  # who used this memory before may still be at it
        with self._module.stream(self._stream):
            into.copy_(host, non_blocking=True)
            arrived = self._stream.record_event()
        into.record_stream(self._stream)
        return lambda: self._module.current_stream().wait_event(arrived)


@lru_cache
def host_copies(device: torch.device) -> HostCopies:
    """What moves tensors of a device. One for each device, since it owns a stream."""
    return PlainCopies() if device.type in ("cpu", "meta") else PinnedCopies(device)
