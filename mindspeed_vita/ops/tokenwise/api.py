"""The calls, and who serves them: fused kernels for the tensor's device where there are any and they do not refuse.

A run says at its start who serves which call (announce). Where plain torch takes a fused kernel's place it is said once, with the reason.
Shapes: T tokens, N heads, D width of a head; X any leading dimensions, H hidden; C rows of logits, V vocabulary.
"""

from __future__ import annotations

import importlib
from typing import Optional, Protocol, cast

import torch

from mindspeed_vita.choices import TokenwiseChoice
from mindspeed_vita.ops.say_once import say_once
from mindspeed_vita.ops.tokenwise import native


class TokenwiseKernels(Protocol):
    """What a module with these kernels offers. A call that it lacks is served by plain torch."""

    def refuse(self, name: str, x: torch.Tensor) -> Optional[str]:
        """Why it cannot serve the call of that name for such a tensor; None if it can."""

    def rms_norm(self, x_XH: torch.Tensor, weight_H: torch.Tensor, eps: float) -> torch.Tensor: ...

    def swiglu(self, x_XH: torch.Tensor) -> torch.Tensor: ...

    def apply_rotary(self, x_TND: torch.Tensor, cos_TD: torch.Tensor, sin_TD: torch.Tensor) -> torch.Tensor: ...

    def row_losses(self, logits_CV: torch.Tensor, labels_C: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]: ...


_NAMES = {"rms_norm": "norm", "swiglu": "gate", "apply_rotary": "rotation", "row_losses": "loss"}
"""The calls, and what a person calls them."""
_LIGER = "mindspeed_vita.ops.tokenwise.liger"
_FUSED = {"npu": "mindspeed_vita.ops.tokenwise.npu", "cuda": _LIGER}
"""By device type."""
_asked: TokenwiseChoice = "auto"


def register_kernels(device: str, module: str) -> None:
    """Adds fused kernels for a device type. For a module that the recipe's `plugins` names.

    Args:
        device: device type.
        module: full name of a module that offers what TokenwiseKernels says; imported when it is used.

    Raises:
        ValueError: the device has others. Liger's, which are optional, give way.
    """
    if _FUSED.get(device) == _LIGER:
        _FUSED[device] = module
    if _FUSED.setdefault(device, module) != module:
        raise ValueError(f"{device} has the fused kernels of {_FUSED[device]} already; found {module}")


def choose_kernels(choice: TokenwiseChoice) -> None:
    """What the models that this process builds from now on use: fused kernels where there are any (auto), or plain torch alone (plain)."""
    global _asked
    _asked = choice


def announce(dtype: torch.dtype, device: torch.device, *, width: int, num_heads: int) -> None:
    """Says once who serves which call on a device, with the reasons of fused kernels that refused.

    Args:
        dtype, device: of the hidden states.
        width, num_heads: of the attention heads on this rank.
    """
    served: dict[str, list[str]] = {}
    for name, label in _NAMES.items():
        example = torch.empty(0, num_heads, width, dtype=torch.float32 if name == "row_losses" else dtype, device=device)
        plain = _kernels(name, example) is native
        served.setdefault("plain torch" if plain else _FUSED[device.type].rpartition(".")[2], []).append(label)
    say_once("kernels: " + "; ".join(f"{', '.join(labels)} by {kernels}" for kernels, labels in served.items()))


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


def row_losses(logits_CV: torch.Tensor, labels_C: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Cross-entropy of each row and the log-sum-exp of its logits, both float32[C]. Has no gradient.

    Args:
        logits_CV: float32; overwritten.
        labels_C: int64, 0 to V - 1.
    """
    return _kernels("row_losses", logits_CV).row_losses(logits_CV, labels_C)


def _kernels(name: str, x: torch.Tensor) -> TokenwiseKernels:
    device = x.device.type
    if device in _FUSED and _asked == "auto":
        fused = cast(TokenwiseKernels, importlib.import_module(_FUSED[device]))
        reason = fused.refuse(name, x) if hasattr(fused, name) else "is not there"
        if reason is None:
            return fused
        say_once(f"{name}: plain torch on {device}, which is slower; the fused kernel {reason}")
    elif device != "cpu" and _asked == "auto":
        say_once(f"norm, gate and rotation: plain torch on {device}, for which there are no fused kernels here")
    return cast(TokenwiseKernels, native)
