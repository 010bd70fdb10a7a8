"""Inputs of recomputed layers that wait in host memory for the backward pass, which fetches each one while the layer behind it works."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Optional

import torch

from mindspeed_vita.platform.host_copies import HostCopies, Wait


class _Input:
    """One layer's input in host memory."""

    def __init__(self, tensor: torch.Tensor, copies: HostCopies, before: Optional[_Input]) -> None:
        self._copies, self._host, self._device = copies, copies.to_host(tensor), tensor.device
        self._before = before
        self._arriving: Optional[tuple[torch.Tensor, Wait]] = None

    def fetch(self) -> None:
        """Starts the copy back to the device."""
        if self._arriving is None:
            tensor = torch.empty_like(self._host, device=self._device)
            self._arriving = tensor, self._copies.fetch(self._host, tensor)

    def take(self) -> torch.Tensor:
        """The input on its device. The input that the backward pass needs next is then on its way."""
        self.fetch()
        assert self._arriving is not None
        tensor, wait = self._arriving
        self._arriving = None
        wait()
        if self._before is not None:
            self._before.fetch()
        return tensor


class LayerInputs:
    """The inputs of one micro-batch's layers, in their order.

    Args:
        copies: of the device (platform.host_copies).
    """

    def __init__(self, copies: HostCopies) -> None:
        self._copies = copies
        self._last: Optional[weakref.ref[_Input]] = None

    def _put(self, tensor: torch.Tensor) -> _Input:
        before = self._last() if self._last is not None else None
        put = _Input(tensor, self._copies, before)
        self._last = weakref.ref(put)
        return put

    @contextmanager
    def offloaded(self) -> Iterator[None]:
        """Within it, what autograd saves for the backward pass goes to host memory. For a checkpoint, which saves its input alone."""
        with torch.autograd.graph.saved_tensors_hooks(self._put, _Input.take):
            yield
