"""Liger's rotation and row losses under Triton's interpreter, against plain torch. Run by test_liger.py; prints the errors as JSON."""

from __future__ import annotations

import json

import torch

from mindspeed_vita.ops.tokenwise import liger, native


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
    example = torch.empty(0, 3, 16)
    report = {
        "refused": {name: liger.refuse(name, example) for name in ("rms_norm", "swiglu", "apply_rotary", "row_losses")},
        "fp32": {str(heads): rotation(heads, torch.float32) for heads in (1, 3)},
        "bf16": rotation(3, torch.bfloat16),
        "losses": {str(size): losses(size) for size in (1000, 4097)},
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main()
