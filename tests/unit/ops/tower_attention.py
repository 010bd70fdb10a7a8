"""What the tower's attention must do, for every backend: each patch sees every other, values and gradients are those of plain math."""

from __future__ import annotations

from typing import Callable

import torch

TOLERANCES = {torch.float32: 2e-6, torch.float16: 4e-3, torch.bfloat16: 3e-2}
"""Of the largest value; outputs and gradients are rounded to the dtype."""
Attend = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


def check_bidirectional(attend: Attend, width: int, dtype: torch.dtype) -> None:
    """Fails where attend(q_BPND, k_BPND, v_BPND) hides a patch from another, or differs from fp32 math on the same numbers."""
    drawn = [torch.randn(2, 6, 3, width, generator=torch.Generator().manual_seed(seed)).to(dtype) for seed in range(4)]
    query, key, value, upstream = (x.requires_grad_() for x in drawn)
    out = attend(query, key, value)
    assert out.dtype == dtype and out.shape == query.shape
    changed = value.detach().clone()
    changed[:, -1] += 8.0  # the last patch must be seen by the first
    moved = (attend(query, key, changed) - out).abs().amin(dim=(0, 2, 3))
    assert (moved > 1e-2).all(), "a patch does not see the last patch: the tower's attention is causal"
    wide = [x.detach().float().requires_grad_() for x in (query, key, value)]
    scores = torch.einsum("bqnd,bknd->bnqk", wide[0], wide[1]) * width**-0.5
    expected = torch.einsum("bnqk,bknd->bqnd", scores.softmax(-1), wide[2])
    found = (out, *torch.autograd.grad(out, (query, key, value), upstream))
    for ours, wanted in zip(found, (expected, *torch.autograd.grad(expected, wide, upstream.float()))):
        torch.testing.assert_close(ours.float(), wanted, rtol=0, atol=TOLERANCES[dtype] * float(wanted.detach().abs().max()))
