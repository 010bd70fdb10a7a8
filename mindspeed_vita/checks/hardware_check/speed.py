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
from mindspeed_vita.checks.hardware_check.sizes import Size
from mindspeed_vita.config import recipe_from_dict
from mindspeed_vita.engine.work import count, peak_of, speeds
from mindspeed_vita.ops import tokenwise
from mindspeed_vita.ops.attention import Blocks, Heads, Upstream, choose, tile_attention
from mindspeed_vita.ops.cross_entropy import chunked_cross_entropy, plain_cross_entropy
from mindspeed_vita.ops.tokenwise import native
from mindspeed_vita.parallel.layout import ParallelLayout
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
    """Causal attention over one document by every backend, forward and backward, over the vendor's kernel alone."""
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
    """Seconds of the forward and of the backward pass: torch's scaled_dot_product_attention, on an NPU npu_fusion_attention."""
    call: Callable[[list[torch.Tensor]], torch.Tensor]
    if platform.device.type == "npu":
        mask = torch.ones(2048, 2048, dtype=torch.bool, device=platform.device).triu(1)  # stands for causal attention of any length
        drawn, upstream = [x.unsqueeze(0) for x in (query, key, value)], grad.unsqueeze(0)
        call = partial(_npu_fusion, mask=mask)
    else:
        drawn = [x.transpose(0, 1).unsqueeze(0).contiguous() for x in (query, key, value)]
        upstream = grad.transpose(0, 1).unsqueeze(0).contiguous()
        call = _scaled_dot_product
    leaves = [x.detach().requires_grad_() for x in drawn]
    out = call(leaves)
    return seconds(lambda: call(leaves), platform, rounds), seconds(
        lambda: torch.autograd.grad(out, leaves, upstream, retain_graph=True), platform, rounds
    )


def _scaled_dot_product(leaves: list[torch.Tensor]) -> torch.Tensor:
    return F.scaled_dot_product_attention(leaves[0], leaves[1], leaves[2], is_causal=True, enable_gqa=True)


def _npu_fusion(leaves: list[torch.Tensor], mask: torch.Tensor) -> torch.Tensor:
    call = torch.ops.npu.npu_fusion_attention
    return call(*leaves, HEADS, "BSND", atten_mask=mask, scale=WIDTH**-0.5, sparse_mode=3)[0]  # type: ignore[no-any-return]


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


def measure_tower(
    report: Report, platform: Platform, layout: ParallelLayout, size: Size, *, rounds: int = 3, peak_tflops: float = 0.0
) -> None:
    """Tower and projector over some tiles, forward and with gradients, and attention inside tiles over the vendor's kernel alone."""
    from mindspeed_vita.models.vita import VitaModel
    from mindspeed_vita.ops.normalize import normalize_tiles
    from mindspeed_vita.parallel.build import build_model

    small = {"num_layers": 1, "hidden_size": 256, "num_heads": 2, "num_kv_heads": 2, "ffn_hidden_size": 256, "vocab_size": 512}
    model_section = {**size.model, "language": small}
    recipe = recipe_from_dict({"model": model_section, "train": {"precision": "bf16", "modules": ["vision", "projector"]}})
    model, vision = build_model(recipe, layout, platform.device), recipe.model.vision
    assert isinstance(model, VitaModel)
    tower, projector = model.vision, model.projector
    assert tower is not None and projector is not None
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (size.tiles, 3, vision.tile_size, vision.tile_size), generator=generator, dtype=torch.uint8)
    tiles, weights = pixels.to(platform.device), [weight for weight in model.parameters() if weight.requires_grad]

    def learn() -> object:
        features = tower(normalize_tiles(tiles, vision.normalization).to(torch.bfloat16))
        return torch.autograd.grad(projector(features).float().sum(), weights, allow_unused=True)

    forward, both = seconds(lambda: model.tile_rows(tiles), platform, rounds), seconds(learn, platform, rounds)
    peak = peak_of(platform.device_name(), peak_tflops)
    for name, passed, trained in (("forward", forward, ()), ("forward and backward", both, ("vision", "projector"))):
        flops = count(recipe.model, trained, tokens=0, pairs=0, rows=0, tiles=size.tiles).tower
        speed = speeds(flops, passed, 1, peak)
        text = f"{passed * 1000:.1f} ms, {size.tiles / passed:,.1f} tiles/s, {speed['tflops_per_device']:.2f} TFLOP/s"
        report.fact(f"tower, {size.tiles} tiles, {name}", text + (f", {speed['mfu']:.3f} of the peak" if "mfu" in speed else ""))
        report.measured(f"tower tiles per second, {name}", size.tiles / passed)
    patches, heads, width = vision.grid**2 + 1, vision.num_heads, vision.hidden_size // vision.num_heads
    _measure_tile_attention(report, platform, (size.tiles, patches, heads, width), rounds)


def _measure_tile_attention(report: Report, platform: Platform, shape: tuple[int, ...], rounds: int) -> None:
    if platform.device.type == "npu":
        return  # there the backend is the vendor's kernel and nothing else
    drawn = random_tensors([shape] * 3, torch.bfloat16)
    query, key, value = (x.to(platform.device) for x in drawn)
    alone = [x.transpose(1, 2).contiguous() for x in (query, key, value)]
    vendor = seconds(lambda: F.scaled_dot_product_attention(alone[0], alone[1], alone[2]), platform, rounds)
    for backend in serving(torch.bfloat16, shape[-1], platform.device):
        ours = seconds(partial(tile_attention, query, key, value, backend=backend), platform, rounds)
        name = f"attention of {shape[0]} tiles of {shape[1]:,} patches, {backend}"
        report.fact(name, f"{ours * 1000:.2f} ms, {ours / vendor:.3f} of torch's scaled_dot_product_attention alone")
        report.measured(f"{name}, ratio", ours / vendor)


def measure_tokenwise(report: Report, platform: Platform, *, small: bool, rounds: int = 5) -> None:
    """Norm, gate, rotation and row losses: whoever serves them on this device, over plain torch."""
    rows, hidden, inner, vocabulary = (64, 64, 96, 1024) if small else (8192, 1536, 8960, 151936)
    dtype, device = torch.bfloat16, platform.device
    x, weight, gates, heads = random_tensors([(rows, 1, hidden), (hidden,), (rows, 1, 2 * inner), (rows, HEADS, WIDTH)], dtype)
    cos, sin = (table.to(device) for table in random_tensors([(rows, WIDTH)] * 2, torch.float32))
    calls: dict[str, tuple[list[torch.Tensor], tuple[object, ...]]] = {
        "rms_norm": ([x, weight], (1e-6,)),
        "swiglu": ([gates], ()),
        "apply_rotary": ([heads], (cos, sin)),
    }
    for name, (tensors, rest) in calls.items():
        leaves = [tensor.to(device).requires_grad_() for tensor in tensors]
        served, plain = (seconds(partial(_learn, getattr(ops, name), leaves, rest), platform, rounds) for ops in (tokenwise, native))
        _say_tokenwise(report, name, leaves[0], served, plain)
    logits = random_tensors([(min(rows, 1024), vocabulary)], torch.float32)[0].to(device)
    labels = torch.zeros(len(logits), dtype=torch.int64, device=device)
    served, plain = (seconds(partial(ops.row_losses, logits, labels), platform, rounds) for ops in (tokenwise, native))
    _say_tokenwise(report, "row_losses", logits, served, plain)


def _learn(call: Callable[..., torch.Tensor], leaves: list[torch.Tensor], rest: tuple[object, ...]) -> object:
    out = call(*leaves, *rest)
    return torch.autograd.grad(out, leaves, torch.ones_like(out))


def _say_tokenwise(report: Report, name: str, example: torch.Tensor, served: float, plain: float) -> None:
    who = tokenwise.served_by(name, example)
    report.fact(f"{name}, by {who}", f"{served * 1e6:.0f} us, {served / plain:.3f} of plain torch")
    report.measured(f"{name}, by {who}, ratio", served / plain)
