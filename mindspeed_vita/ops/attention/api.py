"""The tower's attention. The language model's goes through parallel/ring.py, which calls a backend's blocks itself."""

from __future__ import annotations

from typing import Optional

import torch

from mindspeed_vita.ops.attention.registry import choose


def tile_attention(
    q_BPND: torch.Tensor, k_BPND: torch.Tensor, v_BPND: torch.Tensor, *, backend: Optional[str] = None
) -> torch.Tensor:
    """Bidirectional attention inside each tile: every patch sees every other.

    Args:
        q_BPND, k_BPND, v_BPND: B tiles, P patches of a tile, N heads, D width of a head.
        backend: name of a backend; None takes the first that does not refuse.

    Returns:
        out_BPND in the dtype of q_BPND; scores are accumulated in fp32.

    Raises:
        ValueError: no backend can serve the call.
    """
    return choose(q_BPND, backend, what="tiles").tiles(q_BPND, k_BPND, v_BPND, q_BPND.shape[-1] ** -0.5)
