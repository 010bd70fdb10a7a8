"""Full tensors in memory, or read lazily from other files, into a model of any layout: each rank takes its part of each tensor."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from mindspeed_vita.checkpoint.native import shards


class WholeTensors(shards.Reader):
    """Full tensors by native name, read as shards.Reader reads a folder.

    Args:
        tensors: by name.
        source: what to call them in messages.
    """

    def __init__(self, tensors: Mapping[str, torch.Tensor], source: str) -> None:
        self.folder = source  # type: ignore[assignment]
        self._tensors, self._read = tensors, set()

    def keys(self) -> set[str]:
        """See Reader."""
        return set(self._tensors)

    def unread(self) -> set[str]:
        """See Reader."""
        return set(self._tensors) - self._read

    def shape(self, key: str) -> tuple[int, ...]:
        """See Reader."""
        return tuple(self._tensors[key].shape)

    def tensor(self, key: str) -> torch.Tensor:
        """See Reader."""
        return self._tensors[key]

    def block(self, key: str, offset: tuple[int, ...], shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        """See Reader."""
        self._read.add(key)
        return self._tensors[key][tuple(slice(start, start + length) for start, length in zip(offset, shape))].to(dtype)
