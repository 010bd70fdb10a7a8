"""The fused kernels that a dense language model meets, as plain torch arithmetic with the documented semantics."""

import torch
import torch.nn.functional as F

__all__ = ["npu_apply_adam_w", "npu_rms_norm", "npu_rotary_mul", "npu_swiglu"]


def npu_rms_norm(x, gamma, epsilon=1e-6):
    """(normed in the dtype of x, 1 / root mean square in fp32)."""
    wide = x.float()
    rstd = torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + epsilon)
    return (wide * rstd * gamma.float()).to(x.dtype), rstd


def npu_swiglu(x, dim=-1):
    """silu(first half) * second half."""
    gate, up = x.chunk(2, dim)
    return F.silu(gate) * up


def npu_rotary_mul(x, cos, sin, rotary_mode="half"):
    """Half rotation."""
    first, second = x.chunk(2, -1)
    return x * cos + torch.cat((-second, first), -1) * sin


@torch.no_grad()
def npu_apply_adam_w(beta1_power, beta2_power, lr, weight_decay, beta1, beta2, eps, grad, max_grad_norm, amsgrad, maximize, out):
    """One AdamW step in place; the powers are those of the step before."""
    weight, first, second = out
    first.mul_(beta1).add_(grad, alpha=1 - beta1)
    second.mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
    mean, spread = first / (1 - beta1_power * beta1), (second / (1 - beta2_power * beta2)).sqrt().add_(eps)
    weight.mul_(1 - lr * weight_decay)
    weight.addcdiv_(mean, spread, value=-lr)
    return weight, first, second
