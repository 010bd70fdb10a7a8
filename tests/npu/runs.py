"""What the workers on simulated NPUs carry out for the tests of this folder. Errors are relative to the largest expected entry."""

from __future__ import annotations

import importlib
import sys
from contextlib import redirect_stderr
from io import StringIO
from pathlib import Path
from types import ModuleType
from typing import Any, Callable, Optional

import numpy as np
import torch

from tests.npu.simulator.enter import enter

SCALE = 0.2
Failures = list[tuple[str, str]]


def error(found: torch.Tensor, wanted: torch.Tensor) -> float:
    """Largest difference over the largest expected entry; infinite for NaN."""
    difference = (found.detach().cpu().double() - wanted.detach().double()).abs().max() / wanted.detach().double().abs().max()
    return float(difference.nan_to_num(float("inf")))


def packs(num_tokens: int, width: int, heads: int = 4, kv_heads: int = 2) -> list[torch.Tensor]:
    """Queries, keys, values and the output's gradient, the same on every rank."""
    generator = torch.Generator().manual_seed(num_tokens + width)
    return [torch.randn(num_tokens, count, width, generator=generator) for count in (heads, kv_heads, kv_heads, heads)]


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


def old_cann(layout: Any, *, width: int) -> dict[str, float]:
    """Blocks where softmax statistics come in NTD order although TND was asked for."""
    from mindspeed_vita.engine.hardware_check.exact import random_tensors
    from mindspeed_vita.engine.hardware_check.kernels import DIAGONALS, RECTANGLES, block_errors
    from mindspeed_vita.ops.attention import npu

    chip, device = enter(), torch.device("npu", 0)
    chip.honours_softmax_layout = False
    npu.statistics_order.cache_clear()
    errors = {}
    try:
        assert npu.statistics_order(device) == "NTD"
        tensors = random_tensors([(333, 4, width), *[(333, 2, width)] * 2, (333, 4, width)], torch.float32)
        for segments, causal in ((DIAGONALS, True), (RECTANGLES, False)):
            found = block_errors("npu", tensors, segments, causal=causal, device=device)
            errors.update({f"{name}, causal={causal}": value for name, value in found.items()})
    finally:
        chip.honours_softmax_layout = True
        npu.statistics_order.cache_clear()
    return errors


def many_documents(layout: Any, *, count: int) -> tuple[list[float], list[int]]:
    """A pack of more documents than one call takes; returns errors and the sequences of each call of the forward."""
    from mindspeed_vita.ops.attention import npu as fused
    from mindspeed_vita.ops.attention import reference

    bounds = np.concatenate([[0], np.cumsum(1 + np.arange(count) % 3)])
    segments = np.stack([bounds[:-1], bounds[1:]] * 2, axis=1)
    query, key, value, grad = packs(int(bounds[-1]), 16, heads=2, kv_heads=1)
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


def train(layout: Any, *, content: dict[str, Any]) -> str:
    """Trains a recipe under the layout of the pool's call; returns the device that did."""
    from mindspeed_vita.platform import get_platform
    from tests.distributed.layout_runs import run

    run(layout, content=content)
    return str(get_platform().device)


def refusals(layout: Any) -> list[str]:
    """Why attention refuses what the kernel does not take, and what is said when plain torch takes a fused kernel's place."""
    from mindspeed_vita.ops import tokenwise
    from mindspeed_vita.ops.attention import choose

    reasons = []
    for shape, dtype in (((1, 2, 64), torch.float64), ((1, 2, 769), torch.float32), ((1, 257, 64), torch.float32)):
        try:
            choose(torch.empty(shape, dtype=dtype).npu(), "npu")
        except ValueError as refusal:
            reasons.append(str(refusal))
    before = len(enter().calls)
    with redirect_stderr(StringIO()) as said:
        assert tokenwise.swiglu(torch.ones(1, 4, dtype=torch.float64).npu()).dtype == torch.float64
    assert len(enter().calls) == before
    return [*reasons, said.getvalue()]


def random_numbers(layout: Any) -> dict[str, bool]:
    """Whether a device's random numbers are its own, and can be repeated."""
    from mindspeed_vita.platform import get_platform

    platform = get_platform()
    platform.seed(5)
    host, state = torch.get_rng_state(), platform.rng_state()
    first, second = (torch.nn.functional.dropout(torch.ones(64, device=platform.device), 0.5).cpu() for _ in range(2))
    untouched = torch.equal(host, torch.get_rng_state())
    platform.set_rng_state(state)
    again = torch.nn.functional.dropout(torch.ones(64, device=platform.device), 0.5).cpu()
    return {"varies": not torch.equal(first, second), "repeats": torch.equal(first, again), "leaves the host's alone": untouched}


def check(layout: Any, *, section: str) -> Failures:
    """One section of the hardware checks, in fp32 and small; returns what failed, and why."""
    return _failures(section)


def mutant(layout: Any, *, module: str, old: str, new: str, section: str) -> Failures:
    """The same with one place of a module's source changed."""
    original = importlib.import_module(module)
    source = Path(str(original.__file__)).read_text(encoding="utf-8")
    assert source.count(old) == 1, f"{module} has {source.count(old)} places like {old!r}"
    changed = ModuleType(module)
    changed.__file__ = original.__file__
    exec(compile(source.replace(old, new), f"{module} with {new!r}", "exec"), changed.__dict__)
    try:
        _install(module, changed)
        return _failures(section)
    finally:
        _install(module, original)


def _install(name: str, module: ModuleType) -> None:
    package, leaf = name.rsplit(".", 1)
    sys.modules[name] = module
    setattr(sys.modules[package], leaf, module)


def _failures(section: str) -> Failures:
    from mindspeed_vita.engine.hardware_check.report import Report

    report = Report(say=lambda line: None)
    report.section(section, _SECTIONS[section])
    return [(outcome.name, outcome.note) for outcome in report.outcomes if not outcome.passed]


def _blocks(report: Any) -> None:
    from mindspeed_vita.engine.hardware_check.kernels import check_blocks

    check_blocks(report, torch.device("npu", 0), dtypes=(torch.float32,), widths=(64,))


def _tower(report: Any) -> None:
    from mindspeed_vita.engine.hardware_check.kernels import check_tower

    check_tower(report, torch.device("npu", 0), dtypes=(torch.float32,))


def _tokenwise(report: Any) -> None:
    from mindspeed_vita.engine.hardware_check.kernels import check_tokenwise

    check_tokenwise(report, torch.device("npu", 0))


def _merge(report: Any) -> None:
    from mindspeed_vita.engine.hardware_check.ascend import check_merge

    check_merge(report, torch.device("npu", 0))


def _many(report: Any) -> None:
    errors, _ = many_documents(None, count=1030)
    report.check("1,030 documents", max(errors), 1e-5)


def _modes(report: Any) -> None:
    """Diagonals are causal from the bottom right under the compressed mask; everything else has no mask and no mode."""
    chip = enter()
    before = len(chip.calls)
    _blocks(report)
    attention = [call.arguments for call in chip.calls[before:] if call.name.startswith("npu_fusion_attention")]
    modes = {(arguments["sparse_mode"], arguments["atten_mask"] and arguments["atten_mask"][0]) for arguments in attention}
    report.check("modes and masks other than those wanted", len(modes ^ {(3, (2048, 2048)), (0, None)}), 0, str(modes))


_SECTIONS: dict[str, Callable[[Any], None]] = {
    "blocks": _blocks,
    "tower": _tower,
    "tokenwise": _tokenwise,
    "merge": _merge,
    "many": _many,
    "modes": _modes,
}
