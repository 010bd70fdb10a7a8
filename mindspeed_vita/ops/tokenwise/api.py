"""The calls, and who serves them: fused kernels for the tensor's device where there are any and they do not refuse.

Where plain torch serves a device it is said once, with the reason.
Shapes: T tokens, N heads, D width of a head; X any leading dimensions, H hidden.
"""

from __future__ import annotations

import importlib
from typing import Optional, Protocol, cast

import torch

from mindspeed_vita.ops.say_once import say_once
from mindspeed_vita.ops.tokenwise import native


class TokenwiseKernels(Protocol):
    """What a module with these kernels offers."""

    def refuse(self, name: str, x: torch.Tensor) -> Optional[str]:
        """Why it cannot serve the call of that name for such a tensor; None if it can."""

    def rms_norm(self, x_XH: torch.Tensor, weight_H: torch.Tensor, eps: float) -> torch.Tensor: ...

    def swiglu(self, x_XH: torch.Tensor) -> torch.Tensor: ...

    def apply_rotary(self, x_TND: torch.Tensor, cos_TD: torch.Tensor, sin_TD: torch.Tensor) -> torch.Tensor: ...


_FUSED = {"npu": "mindspeed_vita.ops.tokenwise.npu"}
"""By device type."""


def register_kernels(device: str, module: str) -> None:
    """Adds fused kernels for a device type. For a module that the recipe's `plugins` names.

    Args:
        device: device type.
        module: full name of a module that offers what TokenwiseKernels says; imported when it is used.

    Raises:
        ValueError: the device has others.
    """
    if _FUSED.setdefault(device, module) != module:
        raise ValueError(f"{device} has the fused kernels of {_FUSED[device]} already; found {module}")


def rms_norm(x_XH: torch.Tensor, weight_H: torch.Tensor, eps: float) -> torch.Tensor:
    """x / sqrt(mean(x ** 2) + eps) * weight over the last dimension, in the dtype of x."""
    return _kernels("rms_norm", x_XH).rms_norm(x_XH, weight_H, eps)


def swiglu(x_XH: torch.Tensor) -> torch.Tensor:
    """silu(first half) * second half of the last dimension (arXiv 2002.05202)."""
    return _kernels("swiglu", x_XH).swiglu(x_XH)


def apply_rotary(x_TND: torch.Tensor, cos_TD: torch.Tensor, sin_TD: torch.Tensor) -> torch.Tensor:
    """Rotates every head by its token's angles (half rotation, as Qwen2); computed in the dtype of x.

    Args:
        x_TND: queries or keys.
        cos_TD, sin_TD: from ops.rotary.RotaryTables.
    """
    return _kernels("apply_rotary", x_TND).apply_rotary(x_TND, cos_TD, sin_TD)


def _kernels(name: str, x: torch.Tensor) -> TokenwiseKernels:
    if x.device.type in _FUSED:
        fused = cast(TokenwiseKernels, importlib.import_module(_FUSED[x.device.type]))
        reason = fused.refuse(name, x)
        if reason is None:
            return fused
        say_once(f"{name}: plain torch on {x.device.type}, which is slower; the fused kernel {reason}")
    elif x.device.type != "cpu":
        say_once(f"norm, gate and rotation: plain torch on {x.device.type}, for which there are no fused kernels here")
    return cast(TokenwiseKernels, native)
