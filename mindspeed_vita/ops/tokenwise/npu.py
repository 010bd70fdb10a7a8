"""The calls of api.py by torch_npu's fused kernels, whose gradients are torch_npu's own. Not run on Ascend hardware so far.

torch_npu is imported by the calls only.
"""

from __future__ import annotations

from typing import Optional

import torch

_DTYPES = (torch.bfloat16, torch.float16, torch.float32)
_WIDEST_HEAD = 894
_MOST_HEADS = 999


def refuse(name: str, x: torch.Tensor) -> Optional[str]:
    """bf16, fp16 and fp32; for rotation fewer than 1,000 heads of even widths below 896."""
    if x.dtype not in _DTYPES:
        return f"takes bf16, fp16 and fp32, not {x.dtype}"
    if name == "apply_rotary" and (x.shape[-1] > _WIDEST_HEAD or x.shape[-2] > _MOST_HEADS):
        return f"takes up to {_MOST_HEADS} heads of widths up to {_WIDEST_HEAD}, not {x.shape[-2]} of {x.shape[-1]}"
    return None


def rms_norm(x_XH: torch.Tensor, weight_H: torch.Tensor, eps: float) -> torch.Tensor:
    """See api.rms_norm. The kernel wants the weight in the dtype of x."""
    import torch_npu

    return torch_npu.npu_rms_norm(x_XH.contiguous(), weight_H.to(x_XH.dtype), eps)[0]


def swiglu(x_XH: torch.Tensor) -> torch.Tensor:
    """See api.swiglu."""
    import torch_npu

    return torch_npu.npu_swiglu(x_XH.contiguous(), dim=-1)


def apply_rotary(x_TND: torch.Tensor, cos_TD: torch.Tensor, sin_TD: torch.Tensor) -> torch.Tensor:
    """See api.apply_rotary. The kernel knows four dimensions; this is its layout BSND with one sequence."""
    import torch_npu

    cos, sin = (table.to(x_TND.dtype)[None, :, None, :].contiguous() for table in (cos_TD, sin_TD))
    return torch_npu.npu_rotary_mul(x_TND.unsqueeze(0).contiguous(), cos, sin).squeeze(0)
