"""The two attention calls of the model, and the registry that picks who serves them.

Shapes: T tokens, N heads (query), G heads (key and value, G divides N), D width of a head, B tiles, P tokens of a tile.
"""

from __future__ import annotations

from typing import Callable, Optional, Protocol, Sequence

import torch

from mindspeed_vita.ops.attention import reference, torch_native
from mindspeed_vita.ops.attention.choice import choose


class Backend(Protocol):
    """What a backend module offers: the two calls, and why it would refuse a tensor."""

    def refuse(self, query: torch.Tensor) -> Optional[str]: ...

    packed: Callable[..., torch.Tensor]
    tiles: Callable[..., torch.Tensor]


_BACKENDS: dict[str, Backend] = {"torch_native": torch_native, "reference": reference}  # type: ignore[dict-item]


def backend_names() -> list[str]:
    """Names of the backends, in the order they are tried."""
    return list(_BACKENDS)


def _choose(query: torch.Tensor, name: Optional[str]) -> Backend:
    return choose(_BACKENDS, lambda backend: backend.refuse(query), name)


def packed_attention(
    q_TND: torch.Tensor,
    k_TGD: torch.Tensor,
    v_TGD: torch.Tensor,
    cu_seqlens: Sequence[int],
    *,
    scale: Optional[float] = None,
    backend: Optional[str] = None,
) -> torch.Tensor:
    """Causal attention inside each document of a pack.

    Args:
        q_TND: queries.
        k_TGD: keys.
        v_TGD: values.
        cu_seqlens: document bounds, from 0 to T.
        scale: factor on the scores; None takes D ** -0.5.
        backend: name of a backend; None takes the first that does not refuse.

    Returns:
        out_TND, in the dtype of q_TND; scores are accumulated in fp32.

    Raises:
        ValueError: no backend can serve the call.
    """
    scale = q_TND.shape[-1] ** -0.5 if scale is None else scale
    return _choose(q_TND, backend).packed(q_TND, k_TGD, v_TGD, cu_seqlens, scale)


def tile_attention(
    q_BPND: torch.Tensor, k_BPND: torch.Tensor, v_BPND: torch.Tensor, *, backend: Optional[str] = None
) -> torch.Tensor:
    """Bidirectional attention inside each tile: every patch sees every other. Returns out_BPND.

    Raises:
        ValueError: no backend can serve the call.
    """
    return _choose(q_BPND, backend).tiles(q_BPND, k_BPND, v_BPND, q_BPND.shape[-1] ** -0.5)
