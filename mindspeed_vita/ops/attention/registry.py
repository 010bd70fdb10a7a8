"""The attention backends, and which of them serves a call: the named one, or the first for the device that does not refuse.

A slower one never serves without a word: the choice is printed once on every host, with the reasons of those that refused.
Shapes: T query tokens, S keys, N query heads, G key heads, D width; Q the query rows of all segments; B tiles, P tokens of a tile.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Optional, Protocol, cast

import numpy as np
import torch

from mindspeed_vita.ops.say_once import say_once


class Backend(Protocol):
    """What a backend module offers.

    Blocks come as segments, int64[n, 4]: query start and stop, key start and stop. The query ranges of one call do not overlap;
    key ranges may. A segment is mask-free, or (causal) a square with causal attention inside. None is empty.
    """

    def refuse(self, query: torch.Tensor) -> Optional[str]:
        """Why it cannot serve attention for queries like these, [..., heads, width]; None if it can."""

    def blocks_forward(
        self, q_TND: torch.Tensor, k_SGD: torch.Tensor, v_SGD: torch.Tensor, segments: np.ndarray, *, causal: bool, scale: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """out_QND and its log-sum-exp, fp32 [Q, N]."""

    def blocks_backward(
        self,
        grad_TND: torch.Tensor,
        q_TND: torch.Tensor,
        k_SGD: torch.Tensor,
        v_SGD: torch.Tensor,
        out_TND: torch.Tensor,
        lse_TN: torch.Tensor,
        segments: np.ndarray,
        *,
        causal: bool,
        scale: float,
        dq_TND: torch.Tensor,
        dkv_2SGD: torch.Tensor,
    ) -> None:
        """Adds the segments' gradients to dq and dkv, both fp32. out and lse are the final ones, merged over all segments."""

    def tiles(self, q_BPND: torch.Tensor, k_BPND: torch.Tensor, v_BPND: torch.Tensor, scale: float) -> torch.Tensor:
        """out_BPND of bidirectional attention inside each tile, with its gradient."""


@dataclass(frozen=True)
class _Entry:
    module: str
    device: Optional[str]
    """The only device type it is for; None: any."""


_HERE = "mindspeed_vita.ops.attention"
# fastest first
_BACKENDS = {
    "flash_attn": _Entry(f"{_HERE}.flash_attn_varlen", "cuda"),
    "torch_cuda": _Entry(f"{_HERE}.torch_cuda", "cuda"),
    "npu": _Entry(f"{_HERE}.npu", "npu"),
    "torch_native": _Entry(f"{_HERE}.torch_native", "cpu"),
    "reference": _Entry(f"{_HERE}.reference", None),
}


def backend_names(device: Optional[str] = None) -> list[str]:
    """Names of the backends for a device type, or of all, in the order they are tried."""
    return [name for name, entry in _BACKENDS.items() if device is None or entry.device in (None, device)]


def choose(query: torch.Tensor, name: Optional[str] = None, *, what: str = "packs") -> Backend:
    """Picks a backend.

    Args:
        query: the queries to serve, [..., heads, width].
        name: the backend that was asked for; None takes the first for the tensor's device that does not refuse.
        what: what is attended to, for the line that is printed once.

    Raises:
        ValueError: no backend has that name, or none can serve the call, with every reason.
    """
    if name is not None and name not in _BACKENDS:
        raise ValueError(f"attention backend {name!r} is unknown; use one of {', '.join(_BACKENDS)}")
    reasons: list[str] = []
    for candidate in [name] if name else backend_names(query.device.type):
        reason = _refusal(candidate, query)
        if reason is None:
            say_once(f"attention of {what}: {candidate}" + (f", slower than what refused ({'; '.join(reasons)})" if reasons else ""))
            return cast(Backend, importlib.import_module(_BACKENDS[candidate].module))
        reasons.append(f"{candidate}: {reason}")
    raise ValueError("no attention backend can serve this call: " + "; ".join(reasons))


def _refusal(name: str, query: torch.Tensor) -> Optional[str]:
    entry = _BACKENDS[name]
    if entry.device not in (None, query.device.type):
        return f"runs on {entry.device}, not on {query.device.type}"
    return cast(Backend, importlib.import_module(entry.module)).refuse(query)
