"""The tower's attention: every backend that runs here is bidirectional and equals plain math, forward and backward."""

from functools import partial

import pytest
import torch

from mindspeed_vita.ops.attention import backend_names, tile_attention
from tests.unit.ops.tower_attention import check_bidirectional


@pytest.mark.parametrize("backend", backend_names("cpu"))
@pytest.mark.parametrize("width", [16, 64, 72, 80, 128])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_tile_attention_is_bidirectional(backend: str, width: int, dtype: torch.dtype) -> None:
    check_bidirectional(partial(tile_attention, backend=backend), width, dtype)
