"""Rings of several sizes on one device: as exact as that device's own attention in one piece?"""

from __future__ import annotations

import numpy as np
import torch

from mindspeed_vita.checks.hardware_check.exact import block_attention, random_tensors, relative_error
from mindspeed_vita.checks.hardware_check.kernels import LIMITS, serving
from mindspeed_vita.checks.hardware_check.report import Report
from mindspeed_vita.checks.virtual_ring import virtual_ring_attention
from mindspeed_vita.ops.attention import Heads, choose
from mindspeed_vita.sharding import make_cp_plan

SIZES = (1, 2, 4, 8)
GROWTH = 2.0
"""A ring's error in bf16 over that of one device. Partial results merge in fp32, but each was rounded to bf16 by its kernel: where that is
the only error, as on a simulated Ascend, it grows by the root of 2 (worst seen 1.46; on a CPU 1.19)."""
_PACKS = {"one document": (0, 1.0), "packed": (0, 0.11, 0.12, 0.55, 0.93, 1.0)}


def check_rings(report: Report, device: torch.device, *, tokens: int = 512) -> None:
    """Virtual rings of 2, 4 and 8 against fp64, in bf16 and fp32, next to one device's attention in one piece."""
    heads, kv_heads, width = 5, 1, 128
    for dtype in (torch.bfloat16, torch.float32):
        tensors = random_tensors([(tokens, heads, width), *[(tokens, kv_heads, width)] * 2, (tokens, heads, width)], dtype)
        for backend in serving(dtype, width, device):
            kernels = choose(Heads.of(tensors[0].to(device)), backend)
            for name, parts in _PACKS.items():
                bounds = np.array([round(part * tokens) for part in parts])
                segments = np.stack([bounds[:-1], bounds[1:]] * 2, axis=1)
                out, _, *grads = block_attention(tensors, segments, causal=True, scale=width**-0.5)
                alone: list[float] = []
                for size in SIZES:
                    query, key, value, grad = (x.to(device) for x in tensors)
                    found = virtual_ring_attention(query, key, value, grad, make_cp_plan(bounds, size), scale=width**-0.5, backend=kernels)
                    errors = [relative_error(*pair) for pair in zip(found, (out, *grads))]
                    alone = alone or errors
                    label = f"{backend} ring of {size}, {name}, {str(dtype).removeprefix('torch.')}"
                    report.check(label, max(errors), LIMITS[dtype])
                    if size > 1 and dtype is torch.bfloat16:
                        report.check(f"{label}, over one device", max(ours / one for ours, one in zip(errors, alone)), GROWTH)
