"""What the workers on simulated NPUs carry out for the tests of this folder. Errors are relative to the largest expected entry."""

from __future__ import annotations

from typing import Any, Optional

import numpy as np
import torch

from tests.npu.simulator.enter import enter

WIDTHS = (64, 80, 128)
SCALE = 0.2


def error(found: torch.Tensor, wanted: torch.Tensor) -> float:
    """Largest difference over the largest expected entry; infinite for NaN."""
    difference = (found.detach().cpu().double() - wanted.detach().double()).abs().max() / wanted.detach().double().abs().max()
    return float(difference.nan_to_num(float("inf")))


def packs(num_tokens: int, width: int, dtype: torch.dtype = torch.float32, heads: int = 4, kv_heads: int = 2) -> list[torch.Tensor]:
    """Queries, keys, values and the output's gradient, the same on every rank."""
    generator = torch.Generator().manual_seed(num_tokens + width)
    return [torch.randn(num_tokens, count, width, generator=generator).to(dtype) for count in (heads, kv_heads, kv_heads, heads)]


def virtual_rings(layout: Any, *, width: int, dtype: str = "float32", old_cann: bool = False) -> dict[str, list[float]]:
    """Rings of several sizes on one device against the plain reference, forward and backward: the blocks in every form."""
    from mindspeed_vita.ops.attention import npu, reference
    from mindspeed_vita.parallel.virtual_ring import virtual_ring_attention
    from mindspeed_vita.sharding import plan

    chip = enter()
    chip.honours_softmax_layout = not old_cann
    npu.statistics_order.cache_clear()
    errors = {}
    try:
        for bounds, cp_size in (([0, 64], 1), ([0, 5, 6, 17, 32, 64], 1), ([0, 64], 2), ([0, 5, 6, 17, 32, 64], 4), ([0, 40, 64], 8)):
            tensors, cp_plan = packs(64, width, getattr(torch, dtype)), plan(np.array(bounds), cp_size)
            found = virtual_ring_attention(*(x.npu() for x in tensors), cp_plan, scale=SCALE)
            wanted = virtual_ring_attention(*(x.float() for x in tensors), cp_plan, scale=SCALE, kernels=reference)
            errors[f"{bounds} on {cp_size}"] = [error(*pair) for pair in zip(found, wanted)]
        assert npu.statistics_order(torch.device("npu", 0)) == ("NTD" if old_cann else "TND")
    finally:
        chip.honours_softmax_layout = True
        npu.statistics_order.cache_clear()
    return errors


def ring(layout: Any, *, bounds: list[int], width: int) -> Optional[dict[str, float]]:
    """Ring attention over the processes of the layout against one process's plain reference; on rank 0."""
    import torch.distributed as dist

    from mindspeed_vita.ops.attention import reference
    from mindspeed_vita.parallel.ring import ring_attention
    from mindspeed_vita.parallel.virtual_ring import virtual_ring_attention
    from mindspeed_vita.sharding import index, plan

    cp_plan = plan(np.array(bounds), layout.cp_size)
    tensors = packs(bounds[-1], width)
    mine = torch.from_numpy(index(cp_plan, layout.cp_rank))
    leaves = [x[mine].npu().requires_grad_() for x in tensors[:3]]
    out = ring_attention(*leaves, cp_plan, scale=SCALE, group=layout.cp_group, rank=layout.cp_rank)
    out.backward(tensors[3][mine].npu())
    parts: list[Any] = [None] * layout.cp_size
    dist.all_gather_object(parts, [out.detach().cpu(), *(leaf.grad.cpu() for leaf in leaves)])
    if layout.cp_rank:
        return None
    wanted = virtual_ring_attention(*tensors, plan(np.array(bounds), 1), scale=SCALE, kernels=reference)
    rows = [torch.from_numpy(index(cp_plan, rank)) for rank in range(layout.cp_size)]
    errors = {}
    for number, (name, expected) in enumerate(zip(("out", "dq", "dk", "dv"), wanted)):
        whole = torch.full_like(expected, float("nan"))
        for part, own in zip(parts, rows):
            whole[own] = part[number]
        errors[name] = error(whole, expected)
    return errors


def many_documents(layout: Any, *, count: int) -> tuple[list[float], list[int]]:
    """A pack of more documents than one call takes; returns errors and the sequences of each call of the forward."""
    from mindspeed_vita.ops.attention import npu as fused
    from mindspeed_vita.ops.attention import reference

    bounds = np.concatenate([[0], np.cumsum(1 + np.arange(count) % 3)])
    segments = np.stack([bounds[:-1], bounds[1:]] * 2, axis=1)
    query, key, value, grad = packs(int(bounds[-1]), 64, heads=2, kv_heads=1)
    chip = enter()
    before = len(chip.calls)
    results = []
    for kernels, device in ((fused, "npu"), (reference, "cpu")):
        q, k, v, g = (x.to(device) for x in (query, key, value, grad))
        out, lse = kernels.blocks_forward(q, k, v, segments, causal=True, scale=SCALE)
        dq, dkv = torch.zeros_like(q), torch.zeros(2, *k.shape, device=device)
        kernels.blocks_backward(g, q, k, v, out, lse, segments, causal=True, scale=SCALE, dq_TND=dq, dkv_2SGD=dkv)
        results.append((out, lse, dq, dkv))
    calls = [call for call in chip.calls[before:] if call.name == "npu_fusion_attention" and call.arguments["atten_mask"] is not None]
    return [error(*pair) for pair in zip(*results)], [len(call.arguments["actual_seq_qlen"]) for call in calls]


def tower(layout: Any, *, width: int) -> list[float]:
    """Attention inside tiles, from tensors that are not contiguous, forward and backward, against plain math."""
    from mindspeed_vita.ops.attention import reference, tile_attention

    qkv = torch.randn(2, 6, 3, 3, width, generator=torch.Generator().manual_seed(width))
    grad = torch.randn(2, 6, 3, width, generator=torch.Generator().manual_seed(1))
    results = []
    for device in ("npu", "cpu"):
        leaf = qkv.to(device).requires_grad_()
        query, key, value = leaf.unbind(-2)
        out = tile_attention(query, key, value) if device == "npu" else reference.tiles(query, key, value, width**-0.5)
        out.backward(grad.to(device))
        results.append((out, leaf.grad))
    return [error(*pair) for pair in zip(*results)]


def tokenwise(layout: Any, *, dtype: str) -> dict[str, list[float]]:
    """RMSNorm, SwiGLU and rotation by fused kernels against plain torch in fp32, forward and backward."""
    from mindspeed_vita.ops import tokenwise as fused
    from mindspeed_vita.ops.tokenwise import native

    generator = torch.Generator().manual_seed(3)
    x, weight = torch.randn(5, 1, 32, generator=generator), torch.randn(32, generator=generator)
    heads = torch.randn(7, 3, 16, generator=generator).transpose(0, 1)  # not contiguous
    angles = torch.randn(3, 16, generator=generator)
    cases: dict[str, Any] = {
        "rms_norm": (lambda ops, x, w: ops.rms_norm(x, w, 1e-6), (x, weight)),
        "swiglu": (lambda ops, x: ops.swiglu(x), (x,)),
        "apply_rotary": (lambda ops, x: ops.apply_rotary(x, angles.cos().to(x.device), angles.sin().to(x.device)), (heads,)),
    }
    errors = {}
    for name, (call, tensors) in cases.items():
        rounded = [tensor.to(getattr(torch, dtype)) for tensor in tensors]
        results = []
        for ops, placed in ((fused, [tensor.npu() for tensor in rounded]), (native, [tensor.float() for tensor in rounded])):
            leaves = [tensor.detach().requires_grad_() for tensor in placed]
            out = call(ops, *leaves)
            out.backward(torch.ones_like(out) + out.detach())
            results.append([out, *(leaf.grad for leaf in leaves)])
        errors[name] = [error(*pair) for pair in zip(*results)]
    return errors


def calls_of(layout: Any, *, case: str, arguments: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """Fused operators that one of the functions here calls, with their arguments."""
    chip = enter()
    before = len(chip.calls)
    globals()[case](layout, **arguments)
    return [(call.name, call.arguments) for call in chip.calls[before:]]
