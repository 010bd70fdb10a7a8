"""The tiny data set and the curve reader, and the end of each test's process group."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch.distributed as dist

from mindspeed_vita.engine.session import shutdown
from tests.tiny_data import curve, tiny

__all__ = ["curve", "tiny"]


@pytest.fixture(autouse=True)
def runs_end() -> Iterator[None]:
    """A run that fails keeps its process group, as its process is about to end. Here other runs follow."""
    yield
    if dist.is_initialized():
        shutdown()
