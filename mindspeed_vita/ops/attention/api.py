"""The tower's attention outside a training run. A run chooses its backends when the model is built: parallel/build.py."""

from __future__ import annotations

from typing import Optional

import torch

from mindspeed_vita.ops.attention.call import Heads
from mindspeed_vita.ops.attention.registry import choose


def tile_attention(
    q_BPND: torch.Tensor, k_BPND: torch.Tensor, v_BPND: torch.Tensor, scale: Optional[float] = None, *, backend: Optional[str] = None
) -> torch.Tensor:
    """Bidirectional attention inside each tile: every patch sees every other. Chooses a backend for each call.

    Args:
        q_BPND, k_BPND, v_BPND: B tiles, P patches of a tile, N heads, D width of a head.
        scale: factor on the scores; None takes D ** -0.5.
        backend: name of a backend; None takes the first that does not refuse.

    Returns:
        out_BPND in the dtype of q_BPND; scores are accumulated in fp32.

    Raises:
        ValueError: no backend can serve the call.
    """
    scale = q_BPND.shape[-1] ** -0.5 if scale is None else scale
    return choose(Heads.of(q_BPND), backend, what="tiles").tiles(q_BPND, k_BPND, v_BPND, scale)
