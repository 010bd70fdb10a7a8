"""RMSNorm, SwiGLU and rotation with their gradients, as torch_npu documents them. Arithmetic in fp32."""

from __future__ import annotations

from typing import Any, Optional

import torch

from tests.npu.simulator.contract import FLOATS, demand
from tests.npu.simulator.device import KERNELS, Ascend

_Outputs = tuple[Optional[torch.Tensor], ...]


def npu_rms_norm(call: dict[str, Any], chip: Ascend) -> _Outputs:
    """x / rms(x) * gamma, and 1 / rms in fp32."""
    x, gamma = call["input"], call["gamma"]
    demand(x.dtype in FLOATS and gamma.dtype == x.dtype, f"input is {x.dtype}, gamma {gamma.dtype}; fp16, bf16 or fp32, both alike")
    demand(x.is_contiguous() and 2 <= x.dim() <= 8, "input must be contiguous, with 2 to 8 dimensions")
    demand(x.shape[-gamma.dim() :] == gamma.shape, "gamma must have the shape of the last dimensions")
    rstd = x.float().square().mean(_last(gamma), keepdim=True).add(call["epsilon"]).rsqrt()
    return (x.float() * rstd * gamma.float()).to(x.dtype), rstd


def npu_rms_norm_backward(call: dict[str, Any], chip: Ascend) -> _Outputs:
    """Gradients of the input, in its dtype, and of gamma, in fp32."""
    x, gamma, rstd = call["input"].float(), call["gamma"].float(), call["rstd"]
    demand(call["dy"].dtype == call["input"].dtype, "dy must have the input's dtype")
    grad = call["dy"].float()
    normed, scaled = x * rstd, grad * gamma
    dx = rstd * (scaled - normed * (scaled * normed).mean(_last(gamma), keepdim=True))
    return dx.to(call["input"].dtype), (grad * normed).flatten(0, x.dim() - gamma.dim() - 1).sum(0)


def npu_swiglu(call: dict[str, Any], chip: Ascend) -> _Outputs:
    """silu(first half) * second half."""
    x, dim = call["input"], call["dim"]
    demand(x.dtype in FLOATS and x.is_contiguous(), f"input must be contiguous fp16, bf16 or fp32, not {x.dtype}")
    demand(x.shape[dim] % 2 == 0, f"an odd number ({x.shape[dim]}) has no halves")
    gate, up = x.float().chunk(2, dim)
    return ((gate * gate.sigmoid() * up).to(x.dtype),)


def npu_swiglu_backward(call: dict[str, Any], chip: Ascend) -> _Outputs:
    """Gradients of both halves."""
    gate, up = call["input"].float().chunk(2, call["dim"])
    grad, sigmoid = call["grad_output"].float(), gate.sigmoid()
    halves = [grad * up * sigmoid * (1 + gate * (1 - sigmoid)), grad * gate * sigmoid]
    return (torch.cat(halves, call["dim"]).to(call["input"].dtype),)


def npu_rotary_mul(call: dict[str, Any], chip: Ascend) -> _Outputs:
    """x * r1 + rotate_half(x) * r2 over [B, S, N, D]."""
    x = call["input"]
    demand(call["rotary_mode"] == "half" and call.get("rotate") is None, "only the half mode is simulated")
    demand(x.dim() == 4 and x.is_contiguous(), "input must be contiguous, with 4 dimensions")
    demand(x.shape[-1] < 896 and x.shape[-1] % 2 == 0, f"heads of width {x.shape[-1]}: below 896, and even")
    demand(x.shape[0] < 1000 and x.shape[2] < 1000, "fewer than 1,000 sequences and heads")
    for name in ("r1", "r2"):
        table = call[name]
        demand(table.dtype == x.dtype and table.dtype in FLOATS, f"{name} is {table.dtype}, input {x.dtype}; both alike")
        demand(table.shape == (1, x.shape[1], 1, x.shape[3]), f"{name} must be [1, S, 1, D]")
    return ((x.float() * call["r1"].float() + _rotated(x.float()) * call["r2"].float()).to(x.dtype),)


def npu_rotary_mul_backward(call: dict[str, Any], chip: Ascend) -> _Outputs:
    """Gradients of the input and of both tables."""
    x, grad, cos, sin = (call[name].float() for name in ("input", "grad", "r1", "r2"))
    back = -_rotated(grad * sin)  # the transpose of a quarter turn is the turn back
    tables = (grad * x, grad * _rotated(x))
    summed = [part.sum_to_size(cos.shape).to(call["r1"].dtype) for part in tables]
    return (grad * cos + back).to(call["input"].dtype), *summed


def repeat_interleave_backward_int(call: dict[str, Any], chip: Ascend) -> _Outputs:
    """torch_npu's own gradient of Tensor.repeat_interleave with one number."""
    grad, x, repeats, dim = (call[name] for name in ("grad", "input", "repeats", "dim"))
    if dim is None:
        return (grad.reshape(-1, repeats).sum(-1).view(x.shape),)
    return (grad.unflatten(dim, (x.shape[dim], repeats)).sum(dim % x.dim() + 1),)


def _rotated(x: torch.Tensor) -> torch.Tensor:
    first, second = x.chunk(2, -1)
    return torch.cat([-second, first], -1)


def _last(gamma: torch.Tensor) -> list[int]:
    return list(range(-gamma.dim(), 0))


_ALL = (
    npu_rms_norm,
    npu_rms_norm_backward,
    npu_swiglu,
    npu_swiglu_backward,
    npu_rotary_mul,
    npu_rotary_mul_backward,
    repeat_interleave_backward_int,
)
KERNELS.update({kernel.__name__: kernel for kernel in _ALL})
