"""Every kernel that the model calls on a device, forward and backward, against fp64 on the host."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from mindspeed_vita.checks.hardware_check.exact import block_attention, random_tensors, relative_error
from mindspeed_vita.checks.hardware_check.report import Report
from mindspeed_vita.ops import tokenwise
from mindspeed_vita.ops.attention import Blocks, Heads, Paged, PagedSequences, Upstream, backend_names, choose, tile_attention
from mindspeed_vita.ops.tokenwise import native

LIMITS = {torch.float32: 1e-4, torch.bfloat16: 1.5e-2, torch.float16: 2e-3}
"""Relative to the norm. On a CPU the worst seen is 5e-7, 6e-3 and 8e-4, on a simulated Ascend 5e-7, 2e-3 and 3e-4; fp32 leaves room for
products of reduced precision."""
DTYPES = tuple(LIMITS)
WIDTHS = (64, 80, 128)
NAMES = ("out", "lse", "dq", "dk", "dv")

DIAGONALS = np.array([[0, 1, 0, 1], [1, 38, 1, 38], [38, 166, 38, 166], [166, 333, 166, 333]])
"""Documents of odd lengths, one of a single token, causal inside."""
RECTANGLES = np.array([[3, 4, 0, 57], [4, 132, 0, 57], [140, 333, 57, 300]])
"""Queries of a ring step, not all of them, against keys of other lengths; two segments share keys. No mask."""


def serving(dtype: torch.dtype, width: int, device: torch.device) -> list[str]:
    """Names of the attention backends that do not refuse such heads on a device, the reference left out."""
    heads = Heads(num_heads=2, width=width, dtype=dtype, device=device)
    names = []
    for name in backend_names(device.type):
        if name == "reference":
            continue
        try:
            choose(heads, name)
        except ValueError:
            continue
        names.append(name)
    return names


def check_blocks(
    report: Report, device: torch.device, *, dtypes: Sequence[torch.dtype] = DTYPES, widths: Sequence[int] = WIDTHS
) -> None:
    """The blocks that ring attention is made of, by every backend."""
    for dtype in dtypes:
        for width in widths:
            backends = serving(dtype, width, device)
            if not backends:
                report.fact(f"attention in {_name(dtype)}, width {width}", "no fused kernel takes it")
            for backend in backends:
                for heads, kv_heads in ((5, 1), (4, 4)):
                    for kind, segments in (("causal", DIAGONALS), ("unmasked", RECTANGLES)):
                        tensors = random_tensors([(333, heads, width), *[(333, kv_heads, width)] * 2, (333, heads, width)], dtype)
                        errors = block_errors(backend, tensors, segments, causal=kind == "causal", device=device)
                        worst = max(errors, key=lambda name: errors[name])
                        name = f"{backend} {kind} blocks, {_name(dtype)}, width {width}, {heads}/{kv_heads} heads"
                        report.check(name, errors[worst], LIMITS[dtype], worst)


def block_errors(
    backend: str, tensors: list[torch.Tensor], segments: np.ndarray, *, causal: bool, device: torch.device
) -> dict[str, float]:
    """Errors of one backend's forward and backward by name; the host's tensors go to the device."""
    scale = tensors[0].shape[-1] ** -0.5
    query, key, value, grad = (x.to(device) for x in tensors)
    kernels = choose(Heads.of(query), backend)
    blocks = Blocks(q_TND=query, k_SGD=key, v_SGD=value, segments=segments, causal=causal, scale=scale)
    out_QND, lse_QN = kernels.blocks_forward(blocks)
    rows = torch.from_numpy(np.concatenate([np.arange(start, stop) for start, stop in segments[:, :2]])).to(device)
    out_TND, lse_TN = torch.zeros_like(query), torch.zeros(query.shape[:2], device=device)
    out_TND[rows], lse_TN[rows] = out_QND.to(query.dtype), lse_QN
    dq = torch.zeros(query.shape, device=device)
    dkv = torch.zeros((2, *key.shape), device=device)
    kernels.blocks_backward(blocks, Upstream(grad_TND=grad, out_TND=out_TND, lse_TN=lse_TN), dq_TND=dq, dkv_2SGD=dkv)
    wanted = block_attention(tensors, segments, causal=causal, scale=scale)
    return {name: relative_error(*pair) for name, *pair in zip(NAMES, (out_QND, lse_QN, dq, dkv[0], dkv[1]), wanted)}


PAGE = 256
"""Tokens of a block of the cache."""
QUERY_COUNTS, KEY_COUNTS = (1, 1, 7, 130), (1, 700, 256, 511)
"""Sequences with one new token, as in decoding, and with many, as where queries travel; their cached keys."""


def check_paged(
    report: Report, device: torch.device, *, dtypes: Sequence[torch.dtype] = DTYPES, widths: Sequence[int] = WIDTHS
) -> None:
    """Attention over cached keys in blocks that lie in no order, by every backend: one query per sequence, and several."""
    for dtype in dtypes:
        for width in widths:
            for backend in serving(dtype, width, device):
                for heads, kv_heads in ((5, 1), (4, 4)):
                    for kind, queries in (("decoding", (1,) * len(KEY_COUNTS)), ("several queries", QUERY_COUNTS)):
                        errors = paged_errors(backend, dtype, width, heads, kv_heads, queries, device)
                        name = f"{backend} {kind} over blocks, {_name(dtype)}, width {width}, {heads}/{kv_heads} heads"
                        report.check(name, max(errors), LIMITS[dtype], f"out {errors[0]:.1e}, lse {errors[1]:.1e}")


def paged_errors(
    backend: str, dtype: torch.dtype, width: int, heads: int, kv_heads: int, queries: Sequence[int], device: torch.device
) -> tuple[float, float]:
    """Errors of one backend's output and log-sum-exp over a cache, against fp64 over the keys laid one after the other."""
    numbers = np.random.default_rng(0).permutation(12)
    needed = [-(-keys // PAGE) for keys in KEY_COUNTS]
    tables = tuple(np.split(numbers[: sum(needed)].astype(np.int64), np.cumsum(needed)[:-1]))
    query, keys, values = random_tensors([(sum(queries), heads, width), *[(len(numbers), PAGE, kv_heads, width)] * 2], dtype)
    sequences = PagedSequences(np.cumsum(queries), tables, np.array(KEY_COUNTS, dtype=np.int64), device)
    paged = Paged(
        q_TND=query.to(device), k_BSGD=keys.to(device), v_BSGD=values.to(device), sequences=sequences, scale=width**-0.5
    )
    found = choose(Heads.of(paged.q_TND), backend).paged_forward(paged)
    laid_out = [
        torch.cat([stored[torch.from_numpy(table)].flatten(0, 1)[:count] for table, count in zip(tables, KEY_COUNTS)])
        for stored in (keys, values)
    ]
    wanted = block_attention([query, *laid_out, query], sequences.segments, causal=False, scale=width**-0.5)
    return relative_error(found[0], wanted[0]), relative_error(found[1], wanted[1])


def check_tower(report: Report, device: torch.device, *, dtypes: Sequence[torch.dtype] = DTYPES) -> None:
    """Attention inside tiles, from inputs that are not contiguous: 1,025 patches of InternViT, and a small odd number."""
    for dtype in dtypes:
        for patches, width in ((1025, 64), (37, 64), (37, 80)):
            for backend in serving(dtype, width, device):
                (packed, grad) = random_tensors([(2, patches, 2, 3, width), (2, patches, 2, width)], dtype)
                leaf = packed.to(device).detach().requires_grad_()
                query, key, value = leaf.unbind(-2)
                out = tile_attention(query, key, value, backend=backend)
                out.backward(grad.to(device))
                exact = packed.detach().double().requires_grad_()
                wanted = _bidirectional(exact, width)
                wanted.backward(grad.double())
                assert leaf.grad is not None and exact.grad is not None
                error = max(relative_error(out, wanted), relative_error(leaf.grad, exact.grad))
                report.check(f"{backend} tiles of {patches} patches, {_name(dtype)}, width {width}", error, LIMITS[dtype])


def _bidirectional(packed: torch.Tensor, width: int) -> torch.Tensor:
    query, key, value = packed.unbind(-2)
    scores = torch.einsum("bqnd,bknd->bnqk", query, key) * width**-0.5
    return torch.einsum("bnqk,bknd->bqnd", scores.softmax(-1), value)


def check_tokenwise(report: Report, device: torch.device) -> None:
    """RMSNorm, SwiGLU, rotation and row losses; heads that are not contiguous, and tables beyond 1 as YaRN has them."""
    for dtype in DTYPES:
        x, weight, grad = random_tensors([(33, 1, 128), (128,), (33, 1, 128)], dtype)
        report.check(f"rms_norm, {_name(dtype)}", _error("rms_norm", (x, weight), grad, device, 1e-6), LIMITS[dtype])
        report.check(f"swiglu, {_name(dtype)}", _error("swiglu", (x,), grad[..., :64], device), LIMITS[dtype])
        (heads, grad) = random_tensors([(3, 65, 128), (65, 3, 128)], dtype)
        angles = torch.outer(torch.arange(65.0), 0.1 ** torch.linspace(0, 4, 64)).repeat(1, 2)
        for factor in (1.0, 1.25):
            tables = [(factor * table).to(dtype).float() for table in (angles.cos(), angles.sin())]
            error = _error("apply_rotary", (heads.transpose(0, 1),), grad, device, *tables)
            report.check(f"apply_rotary, {_name(dtype)}, tables up to {factor}", error, LIMITS[dtype])


    logits, labels = 5 * random_tensors([(65, 4097)], torch.float32)[0], torch.arange(65) * 63
    wanted = native.row_losses(logits.double(), labels)
    found = tokenwise.row_losses(logits.to(device), labels.to(device))
    report.check("row losses, float32", max(relative_error(*pair) for pair in zip(found, wanted)), LIMITS[torch.float32])


def _error(name: str, tensors: tuple[torch.Tensor, ...], grad: torch.Tensor, device: torch.device, *rest: Any) -> float:
    """Worst error of an operator's output and gradients against plain torch in fp64."""
    results = []
    for ops, where, dtype in ((tokenwise, device, grad.dtype), (native, torch.device("cpu"), torch.float64)):
        leaves = [x.detach().to(where).to(dtype).requires_grad_() for x in tensors]
        arguments = [x.to(where) if isinstance(x, torch.Tensor) else x for x in rest]
        out = getattr(ops, name)(*leaves, *arguments)
        out.backward(grad.to(where).to(dtype))
        results.append([out, *(leaf.grad for leaf in leaves)])
    return max(relative_error(*pair) for pair in zip(*results))


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
