"""Liger's four kernels under Triton's interpreter, against plain torch. Run by test_liger.py; prints the errors as JSON."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import torch
import triton
import triton.language as tl

from mindspeed_vita.ops.tokenwise import liger, native


@triton.jit
def _rsqrt(x):
    return 1.0 / tl.sqrt(x)


def complete_interpreter() -> None:
    """Fills two gaps that a GPU's compiler does not have: numbers that are kernel arguments stay Python's, and there is no libdevice."""
    from liger_kernel.ops import rms_norm
    from triton.runtime import interpreter

    convert = interpreter._implicit_cvt

    def converted(argument: Any) -> Any:
        if not isinstance(argument, float):
            return convert(argument)
        return tl.tensor(interpreter.TensorHandle(np.array([argument], dtype=np.float32), tl.float32), tl.float32)

    interpreter._implicit_cvt = converted
    rms_norm.rsqrt = _rsqrt


def norm_and_gate(dtype: torch.dtype) -> dict[str, float]:
    """Errors of RMSNorm and SwiGLU, output and gradients, relative to their norm. The interpreter multiplies bf16 numbers as integers."""
    generator = torch.Generator().manual_seed(3)
    x, weight, grad = (torch.randn(*shape, generator=generator).to(dtype) for shape in ((5, 1, 24), (24,), (5, 1, 24)))
    errors = {}
    for name, tensors, upstream, rest in (("rms_norm", (x, weight), grad, (1e-6,)), ("swiglu", (x,), grad[..., :12], ())):
        results = []
        for kernels, kind in ((liger, dtype), (native, torch.float64)):
            leaves = [tensor.to(kind).detach().requires_grad_() for tensor in tensors]
            out = getattr(kernels, name)(*leaves, *rest)
            out.backward(upstream.to(kind))
            results.append([out.detach().double(), *(leaf.grad.double() for leaf in leaves if leaf.grad is not None)])
        assert len(results[0]) == 1 + len(tensors)
        for part, ours, wanted in zip(("out", "grad", "weight's grad"), *results):
            errors[f"{name}, {part}"] = float((ours - wanted).norm() / wanted.norm())
    return errors


def rotation(heads: int, dtype: torch.dtype) -> dict[str, float]:
    """Errors of output and gradient, and whether input and gradient were left alone; heads that are not contiguous, tables beyond 1."""
    generator = torch.Generator().manual_seed(1)
    stored, grad = torch.randn(heads, 9, 16, generator=generator).to(dtype), torch.randn(9, heads, 16, generator=generator).to(dtype)
    angles = torch.outer(torch.arange(9.0), 0.1 ** torch.linspace(0, 4, 8)).repeat(1, 2)
    tables = 1.25 * angles.cos(), 1.25 * angles.sin()
    results = []
    for kernels, kind in ((liger, dtype), (native, torch.float64)):
        leaf = stored.to(kind).detach().requires_grad_()
        before, upstream = leaf.detach().clone(), grad.to(kind)
        out = kernels.apply_rotary(leaf.transpose(0, 1), *(table.to(kind) if kind is torch.float64 else table for table in tables))
        out.backward(upstream)
        assert leaf.grad is not None
        assert torch.equal(leaf, before) and torch.equal(upstream, grad.to(kind)), "an input was overwritten"
        results.append((out.detach().double(), leaf.grad.double()))
    return {name: float((ours - wanted).abs().max()) for name, ours, wanted in zip(("out", "grad"), *results)}


def losses(vocabulary: int) -> dict[str, float]:
    """Errors of the losses and of the log-sum-exps."""
    generator = torch.Generator().manual_seed(2)
    logits, labels = 5 * torch.randn(7, vocabulary, generator=generator), torch.randint(vocabulary, (7,), generator=generator)
    found = liger.row_losses(logits.clone(), labels)
    wanted = native.row_losses(logits.double(), labels)
    return {name: float((ours.double() - right).abs().max()) for name, ours, right in zip(("loss", "lse"), found, wanted)}


def main() -> None:
    """Prints the errors, and why the four calls would be refused."""
    complete_interpreter()
    example = torch.empty(0, 3, 16)
    report = {
        "refused": {name: liger.refuse(name, example) for name in ("rms_norm", "swiglu", "apply_rotary", "row_losses")},
        "fp32": {str(heads): rotation(heads, torch.float32) for heads in (1, 3)},
        "bf16": rotation(3, torch.bfloat16),
        "norm and gate": {str(dtype): norm_and_gate(dtype) for dtype in (torch.float32, torch.float16)},
        "losses": {str(size): losses(size) for size in (1000, 4097)},
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main()
