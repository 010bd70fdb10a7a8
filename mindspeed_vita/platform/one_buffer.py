"""Several host tensors in one buffer, so that one copy takes all of them to a device, where views of the buffer stand for them."""

from __future__ import annotations

from collections.abc import Sequence

import torch

_ALIGNMENT = 512
"""Bytes. Each tensor begins where the devices' allocators would let it begin."""


def join(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """The bytes of host tensors of any types and shapes one after the other, uint8[bytes]. Empty ones take no place."""
    buffer = torch.empty(_starts(tensors)[-1], dtype=torch.uint8)
    for place, tensor in zip(split(buffer, tensors), tensors):
        place.copy_(tensor)
    return buffer


def split(buffer: torch.Tensor, tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Views of a buffer that has what `join` made of tensors, each with the type and shape of its tensor."""
    return [
        buffer[start : start + tensor.nbytes].view(tensor.dtype).view(tensor.shape) for start, tensor in zip(_starts(tensors), tensors)
    ]


def _starts(tensors: Sequence[torch.Tensor]) -> list[int]:
    """Where each tensor begins, and the size of all."""
    starts = [0]
    for tensor in tensors:
        starts.append(starts[-1] + -(-tensor.nbytes // _ALIGNMENT) * _ALIGNMENT)
    return starts
