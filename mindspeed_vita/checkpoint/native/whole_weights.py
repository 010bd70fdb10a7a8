"""Full tensors in memory, or read lazily from other files, into a model of any layout: each rank takes its part of each tensor."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Optional

import torch

from mindspeed_vita.checkpoint.native import shards
from mindspeed_vita.files.tensors import held


class WholeTensors(shards.Reader):
    """Full tensors by native name, read as shards.Reader reads a folder. The tensor that was read last is kept: its blocks come in a row.

    Args:
        tensors: by name.
        source: what to call them in messages.
    """

    def __init__(self, tensors: Mapping[str, torch.Tensor], source: str) -> None:
        self.folder = source  # type: ignore[assignment]
        self._tensors, self._read = held(tensors), set()
        self._last: Optional[tuple[str, torch.Tensor]] = None

    def keys(self) -> set[str]:
        """See Reader."""
        return set(self._tensors)

    def unread(self) -> set[str]:
        """See Reader."""
        return set(self._tensors) - self._read

    def shape(self, key: str) -> tuple[int, ...]:
        """See Reader."""
        return self._tensors.specs()[key].shape

    def tensor(self, key: str) -> torch.Tensor:
        """See Reader."""
        self._read.add(key)
        if self._last is None or self._last[0] != key:
            self._last = key, self._tensors[key]
        return self._last[1]

    def block(self, key: str, offset: tuple[int, ...], shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        """See Reader."""
        return self.tensor(key)[tuple(slice(start, start + length) for start, length in zip(offset, shape))].to(dtype)
