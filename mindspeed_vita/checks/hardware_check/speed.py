"""How fast kernels are on a device, next to the vendor's kernel alone. Neither right nor wrong: the report has ratios as facts."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F

from mindspeed_vita.checks.hardware_check.exact import random_tensors
from mindspeed_vita.checks.hardware_check.kernels import serving
from mindspeed_vita.checks.hardware_check.report import Report
from mindspeed_vita.ops.attention import Blocks, Heads, Upstream, choose
from mindspeed_vita.ops.cross_entropy import chunked_cross_entropy, plain_cross_entropy
from mindspeed_vita.platform import Platform

HEADS, KV_HEADS, WIDTH = 12, 2, 128
"""Of the 1.5B model."""


def seconds(work: Callable[[], object], platform: Platform, rounds: int) -> float:
    """Fastest of some rounds, the device waited for; one before them warms up."""
    found = []
    for _ in range(rounds + 1):
        platform.synchronize()
        start = time.perf_counter()
        work()
        platform.synchronize()
        found.append(time.perf_counter() - start)
    return min(found[1:])


def measure_attention(report: Report, platform: Platform, *, tokens: int, rounds: int = 5) -> None:
    """Causal attention over one document by every backend, forward and backward, over torch's scaled_dot_product_attention alone."""
    device, dtype = platform.device, torch.bfloat16
    shapes: list[tuple[int, ...]] = [(tokens, HEADS, WIDTH), *[(tokens, KV_HEADS, WIDTH)] * 2, (tokens, HEADS, WIDTH)]
    query, key, value, grad = (x.to(device) for x in random_tensors(shapes, dtype))
    alone = _vendor_seconds(query, key, value, grad, platform, rounds)
    segments = np.array([[0, tokens, 0, tokens]])
    blocks = Blocks(q_TND=query, k_SGD=key, v_SGD=value, segments=segments, causal=True, scale=WIDTH**-0.5)
    dq, dkv = torch.zeros(query.shape, device=device), torch.zeros((2, *key.shape), device=device)
    for backend in serving(dtype, WIDTH, device):
        kernels = choose(Heads.of(query), backend)
        out, lse = kernels.blocks_forward(blocks)
        upstream = Upstream(grad_TND=grad, out_TND=out.to(dtype), lse_TN=lse)
        found = (
            seconds(partial(kernels.blocks_forward, blocks), platform, rounds),
            seconds(partial(kernels.blocks_backward, blocks, upstream, dq_TND=dq, dkv_2SGD=dkv), platform, rounds),
        )
        for direction, ours, theirs in zip(("forward", "backward"), found, alone):
            name = f"attention {direction}, {backend}, {tokens:,} tokens"
            report.fact(name, f"{ours * 1000:.2f} ms, {ours / theirs:.3f} of the vendor's kernel alone")
            report.measured(f"{name}, ratio", ours / theirs)


def _vendor_seconds(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, grad: torch.Tensor, platform: Platform, rounds: int
) -> tuple[float, float]:
    """Seconds of the forward and of the backward pass."""
    leaves = [x.transpose(0, 1).unsqueeze(0).contiguous().requires_grad_() for x in (query, key, value)]
    upstream = grad.transpose(0, 1).unsqueeze(0).contiguous()

    def forward() -> torch.Tensor:
        return F.scaled_dot_product_attention(leaves[0], leaves[1], leaves[2], is_causal=True, enable_gqa=True)

    out = forward()
    return seconds(forward, platform, rounds), seconds(
        lambda: torch.autograd.grad(out, leaves, upstream, retain_graph=True), platform, rounds
    )


def measure_head(report: Report, platform: Platform, *, rows: int, hidden: int, vocabulary: int, chunk: int, rounds: int = 3) -> None:
    """Loss of some rows and its gradients: in chunks of rows, over all logits at once."""
    device, dtype = platform.device, torch.bfloat16
    drawn = random_tensors([(rows, hidden), (vocabulary, hidden)], dtype)
    hidden_QH, weight_VH = (x.to(device).requires_grad_() for x in drawn)
    labels_Q = (torch.arange(rows) % vocabulary).to(device)

    def chunked() -> object:
        losses = chunked_cross_entropy(hidden_QH, weight_VH, labels_Q, chunk=chunk)
        return torch.autograd.grad(losses.sum(), [hidden_QH, weight_VH])

    def at_once() -> object:
        return torch.autograd.grad(plain_cross_entropy(hidden_QH, weight_VH, labels_Q).sum(), [hidden_QH, weight_VH])

    ours, theirs = seconds(chunked, platform, rounds), seconds(at_once, platform, rounds)
    report.fact(f"head, {rows:,} rows of {vocabulary:,} words", f"{ours * 1000:.1f} ms, {ours / theirs:.3f} of all logits at once")
    report.measured(f"head, {rows} rows of {vocabulary} words, ratio", ours / theirs)
