"""The calls of api.py on CUDA by Liger's Triton kernels (package liger-kernel), where it is installed. Not run on CUDA hardware so far.

Rotation and row losses run on a CPU under Triton's interpreter, and are compared there; the norm and the gate do not
(scripts/gpu_check.py compares all four). liger_kernel is imported by the calls only.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, Optional

import torch

from mindspeed_vita.ops.attention.package_check import refuse_package

_DTYPES = (torch.bfloat16, torch.float16, torch.float32)
_OLDEST = (0, 8)
_OLDEST_DEVICE = (8, 0)
_WIDEST = 65536
"""Numbers of a row that one program of the norm and the gate takes."""
_PASSED = {
    "cross_entropy_forward": ("reduction", "softcap", "return_z_loss"),
    "rope_forward": ("q", "k", "cos", "sin"),
    "rope_backward": ("dq", "dk", "cos", "sin"),
}
_NO_TOKEN = -100


def refuse(name: str, x: torch.Tensor) -> Optional[str]:
    """bf16, fp16 and fp32, rows of up to 65,536 numbers, even widths of a head for rotation, from compute capability 8.0 on."""
    if x.dtype not in _DTYPES:
        return f"takes bf16, fp16 and fp32, not {x.dtype}"
    if name == "apply_rotary" and x.shape[-1] % 2:
        return f"takes even widths of a head, not {x.shape[-1]}"
    if name in ("rms_norm", "swiglu") and x.shape[-1] > _WIDEST:
        return f"takes rows of up to {_WIDEST} numbers, not {x.shape[-1]}"
    return _refuse_installation() or (_refuse_device(x.device) if x.device.type == "cuda" else None)


@lru_cache(maxsize=1)
def _refuse_installation() -> Optional[str]:
    return refuse_package("liger-kernel", "liger_kernel.ops", oldest=_OLDEST, arguments=_PASSED)


def _refuse_device(device: torch.device) -> Optional[str]:
    found = torch.cuda.get_device_capability(device)
    if found >= _OLDEST_DEVICE:
        return None
    return f"needs compute capability 8.0 or newer, {torch.cuda.get_device_name(device)} has {'.'.join(map(str, found))}"


def rms_norm(x_XH: torch.Tensor, weight_H: torch.Tensor, eps: float) -> torch.Tensor:
    """See api.rms_norm. Computed in fp32 throughout (Liger's casting mode gemma), as torch's; the gradient has memory of its own."""
    from liger_kernel.ops import LigerRMSNormFunction

    offset, in_place = 0.0, False
    return LigerRMSNormFunction.apply(x_XH, weight_H.to(x_XH.dtype), eps, offset, "gemma", in_place)


def swiglu(x_XH: torch.Tensor) -> torch.Tensor:
    """See api.swiglu. The halves are copied: Liger writes their gradients over them."""
    from liger_kernel.ops import LigerSiLUMulFunction

    gate, up = x_XH.chunk(2, dim=-1)
    return LigerSiLUMulFunction.apply(gate.contiguous(), up.contiguous())


def apply_rotary(x_TND: torch.Tensor, cos_TD: torch.Tensor, sin_TD: torch.Tensor) -> torch.Tensor:
    """See api.apply_rotary. Computed in fp32 from fp32 tables, and rounded once."""
    return _Rotary.apply(x_TND, cos_TD, sin_TD)


class _Rotary(torch.autograd.Function):
    """Liger's kernel rotates in place, and so would its autograd: here both passes rotate a copy."""

    @staticmethod
    def forward(ctx: Any, x_TND: torch.Tensor, cos_TD: torch.Tensor, sin_TD: torch.Tensor) -> torch.Tensor:
        from liger_kernel.ops import rope_forward

        ctx.save_for_backward(cos_TD, sin_TD)
        return _rotated(rope_forward, x_TND, cos_TD, sin_TD)

    @staticmethod
    def backward(ctx: Any, grad_TND: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        from liger_kernel.ops import rope_backward

        return _rotated(rope_backward, grad_TND, *ctx.saved_tensors), None, None


def _rotated(rotate: Any, x_TND: torch.Tensor, cos_TD: torch.Tensor, sin_TD: torch.Tensor) -> torch.Tensor:
    copied = x_TND.clone(memory_format=torch.contiguous_format)
    # the kernel rotates queries and keys [1, heads, tokens, width] together; one head stands for the keys that are not there
    absent = torch.zeros_like(copied[:, :1])
    out, *_ = rotate(copied.transpose(0, 1).unsqueeze(0), absent.transpose(0, 1).unsqueeze(0), cos_TD, sin_TD)
    return out.squeeze(0).transpose(0, 1)


def row_losses(logits_CV: torch.Tensor, labels_C: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """See api.row_losses. Liger reads numbers from the device three times a call, and the host waits for them."""
    from liger_kernel.ops import cross_entropy_forward

    target_C = logits_CV.gather(1, labels_C.unsqueeze(1)).squeeze(1)
    plain: dict[str, Any] = {"weight": None, "ignore_index": _NO_TOKEN, "lse_square_scale": 0.0, "label_smoothing": 0.0}
    losses_C, *_ = cross_entropy_forward(logits_CV, labels_C, **plain, reduction="none", softcap=None, return_z_loss=False)
    return losses_C, losses_C + target_C
