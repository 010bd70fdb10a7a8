"""The attention backends, and which of them serves a call: the named one, or the first for the device that does not refuse.

A slower one never serves without a word: the choice is printed once on every host, with the reasons of those that refused.
Shapes as in call.py; Q the query rows of all segments; B tiles, P tokens of a tile.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Optional, Protocol, cast

import torch

from mindspeed_vita.ops.attention.call import Blocks, Heads, Rows, Upstream
from mindspeed_vita.ops.attention.paged import Paged
from mindspeed_vita.ops.say_once import say_once


class Backend(Protocol):
    """What a backend module offers."""

    def refuse(self, heads: Heads) -> Optional[str]:
        """Why it cannot serve such heads; None if it can."""

    def blocks_forward(self, blocks: Blocks) -> tuple[torch.Tensor, torch.Tensor]:
        """out_QND and its log-sum-exp, fp32 [Q, N], for the query rows of all segments, one after the other."""

    def blocks_backward(self, blocks: Blocks, upstream: Upstream, *, dq_TND: torch.Tensor, dkv_2SGD: torch.Tensor) -> None:
        """Adds the gradients of the call to dq and dkv, both fp32."""

    def paged_forward(self, paged: Paged) -> tuple[torch.Tensor, torch.Tensor]:
        """out_TND in the dtype of the queries and its log-sum-exp, fp32 [T, N], of attention over cached keys. Has no gradient."""

    def merge_(
        self, out_TND: torch.Tensor, lse_TN: torch.Tensor, rows: Rows, block_out_QND: torch.Tensor, block_lse_QN: torch.Tensor
    ) -> None:
        """Merges a partial result into some rows of an fp32 accumulator, in place, by log-sum-exp."""

    def tiles(self, q_BPND: torch.Tensor, k_BPND: torch.Tensor, v_BPND: torch.Tensor, scale: float) -> torch.Tensor:
        """out_BPND of bidirectional attention inside each tile, with its gradient."""


@dataclass(frozen=True)
class _Entry:
    module: str
    device: Optional[str]
    """The only device type it is for; None: any."""


_HERE = "mindspeed_vita.ops.attention"
# fastest first; FlashAttention-3 refuses everything but Hopper, where it is the faster of the two
_BACKENDS = {
    "flash_attn_3": _Entry(f"{_HERE}.flash_attn_3", "cuda"),
    "flash_attn_4": _Entry(f"{_HERE}.flash_attn_4", "cuda"),
    "flash_attn": _Entry(f"{_HERE}.flash_attn_varlen", "cuda"),
    "torch_cuda": _Entry(f"{_HERE}.torch_cuda", "cuda"),
    "npu": _Entry(f"{_HERE}.npu", "npu"),
    "torch_native": _Entry(f"{_HERE}.torch_native", "cpu"),
    "reference": _Entry(f"{_HERE}.reference", None),
}


def backend_names(device: Optional[str] = None) -> list[str]:
    """Names of the backends for a device type, or of all, in the order they are tried."""
    return [name for name, entry in _BACKENDS.items() if device is None or entry.device in (None, device)]


def register_backend(name: str, module: str, device: str) -> None:
    """Adds a backend, which is tried before those that are known already. For a module that the recipe's `plugins` names.

    Args:
        name: of the backend.
        module: full name of a module that offers what Backend says; imported when it is tried.
        device: the only device type that it serves.

    Raises:
        ValueError: the name is taken by another backend.
    """
    global _BACKENDS
    entry = _Entry(module, device)
    if _BACKENDS.get(name, entry) != entry:
        raise ValueError(f"the attention backend {name!r} is taken; names so far are {', '.join(_BACKENDS)}")
    _BACKENDS = {name: entry, **_BACKENDS}


def choose(heads: Heads, name: Optional[str] = None, *, what: str = "packs") -> Backend:
    """Picks a backend. Called when a model is built, so that a refusal comes before any data is read.

    Args:
        heads: what it has to serve.
        name: the backend that was asked for; None takes the first for the device that does not refuse.
        what: what is attended to, for the line that is printed once.

    Raises:
        ValueError: no backend has that name, or none can serve the call, with every reason.
    """
    if name is not None and name not in _BACKENDS:
        raise ValueError(f"attention backend {name!r} is unknown; use one of {', '.join(_BACKENDS)}")
    reasons: list[str] = []
    for candidate in [name] if name else backend_names(heads.device.type):
        reason = _refusal(candidate, heads)
        if reason is None:
            say_once(f"attention of {what}: {candidate}" + (f", slower than what refused ({'; '.join(reasons)})" if reasons else ""))
            return cast(Backend, importlib.import_module(_BACKENDS[candidate].module))
        reasons.append(f"{candidate}: {reason}")
    wanted = f"{heads.num_heads} heads of width {heads.width} in {heads.dtype} on {heads.device}"
    raise ValueError(f"no attention backend can serve {wanted}: " + "; ".join(reasons))


def _refusal(name: str, heads: Heads) -> Optional[str]:
    entry = _BACKENDS[name]
    if entry.device not in (None, heads.device.type):
        return f"runs on {entry.device}, not on {heads.device.type}"
    return cast(Backend, importlib.import_module(entry.module)).refuse(heads)
