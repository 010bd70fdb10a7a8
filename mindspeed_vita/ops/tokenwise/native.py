"""The calls of api.py in plain torch: for every device, and what fused kernels are compared with."""

from __future__ import annotations

from typing import Optional

import torch
import torch.nn.functional as F


def refuse(name: str, x: torch.Tensor) -> Optional[str]:
    """Takes every tensor."""
    return None


def rms_norm(x_XH: torch.Tensor, weight_H: torch.Tensor, eps: float) -> torch.Tensor:
    """See api.rms_norm."""
    return F.rms_norm(x_XH, weight_H.shape, weight_H, eps)


def swiglu(x_XH: torch.Tensor) -> torch.Tensor:
    """See api.swiglu."""
    gate, up = x_XH.chunk(2, dim=-1)
    return F.silu(gate) * up


def apply_rotary(x_TND: torch.Tensor, cos_TD: torch.Tensor, sin_TD: torch.Tensor) -> torch.Tensor:
    """See api.apply_rotary."""
    cos, sin = cos_TD.to(x_TND.dtype).unsqueeze(1), sin_TD.to(x_TND.dtype).unsqueeze(1)
    first, second = x_TND.chunk(2, dim=-1)
    return x_TND * cos + torch.cat([-second, first], dim=-1) * sin


def row_losses(logits_CV: torch.Tensor, labels_C: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """See api.row_losses."""
    highest_C = logits_CV.amax(-1)
    logits_CV.sub_(highest_C.unsqueeze(-1))
    target_C = logits_CV.gather(1, labels_C.unsqueeze(1)).squeeze(1)
    log_sum_C = logits_CV.exp_().sum(-1).log()
    return log_sum_C - target_C, log_sum_C + highest_C
