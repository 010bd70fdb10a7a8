"""What the workers on simulated NPUs carry out for the tests of this folder. Errors are relative to the largest expected entry."""

from __future__ import annotations

from contextlib import redirect_stderr
from io import StringIO
from typing import Any, Callable

import numpy as np
import torch

from tests.distributed.transfer_runs import SCALE, error, packs
from tests.mutants import mutated
from tests.npu.simulator.enter import enter

Failures = list[tuple[str, str]]
INSIDE = "inside torch_npu"
"""Operator of copies that no dispatch shows."""


def old_cann(layout: Any, *, width: int) -> dict[str, float]:
    """Blocks where softmax statistics come in NTD order although TND was asked for."""
    from mindspeed_vita.checks.hardware_check.exact import random_tensors
    from mindspeed_vita.checks.hardware_check.kernels import DIAGONALS, RECTANGLES, block_errors
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
    from mindspeed_vita.ops.attention import Blocks, Upstream, reference
    from mindspeed_vita.ops.attention import npu as fused

    bounds = np.concatenate([[0], np.cumsum(1 + np.arange(count) % 3)])
    segments = np.stack([bounds[:-1], bounds[1:]] * 2, axis=1)
    query, key, value, grad = packs(int(bounds[-1]), 16, heads=2, kv_heads=1)
    chip = enter()
    before = len(chip.calls)
    results = []
    for kernels, device in ((fused, "npu"), (reference, "cpu")):
        q, k, v, g = (x.to(device) for x in (query, key, value, grad))
        blocks = Blocks(q_TND=q, k_SGD=k, v_SGD=v, segments=segments, causal=True, scale=SCALE)
        out, lse = kernels.blocks_forward(blocks)
        dq, dkv = torch.zeros_like(q), torch.zeros(2, *k.shape, device=device)
        kernels.blocks_backward(blocks, Upstream(grad_TND=g, out_TND=out, lse_TN=lse), dq_TND=dq, dkv_2SGD=dkv)
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
    from mindspeed_vita.ops.attention import Heads, choose

    reasons = []
    for shape, dtype in (((1, 2, 64), torch.float64), ((1, 2, 769), torch.float32), ((1, 257, 64), torch.float32)):
        try:
            choose(Heads.of(torch.empty(shape, dtype=dtype).npu()), "npu")
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
    with mutated(module, old, new):
        return _failures(section)


def _failures(section: str) -> Failures:
    from mindspeed_vita.checks.hardware_check.report import Report

    report = Report(say=lambda line: None)
    report.section(section, _SECTIONS[section])
    return [(outcome.name, outcome.note) for outcome in report.outcomes if not outcome.passed]


def _blocks(report: Any) -> None:
    from mindspeed_vita.checks.hardware_check.kernels import check_blocks

    check_blocks(report, torch.device("npu", 0), dtypes=(torch.float32,), widths=(64,))


def _paged(report: Any) -> None:
    """The fused kernel over blocks in bf16, which must have been called; and in fp32, which it does not take."""
    from mindspeed_vita.checks.hardware_check.kernels import check_paged

    chip = enter()
    before = len(chip.calls)
    check_paged(report, torch.device("npu", 0), dtypes=(torch.bfloat16, torch.float32), widths=(64, 80))
    called = sum(call.name == "npu_fused_infer_attention_score" for call in chip.calls[before:])
    report.check("calls of the fused kernel other than those wanted", abs(called - 4), 0, f"{called} calls")


def _tower(report: Any) -> None:
    from mindspeed_vita.checks.hardware_check.kernels import check_tower

    check_tower(report, torch.device("npu", 0), dtypes=(torch.float32,))


def _tokenwise(report: Any) -> None:
    from mindspeed_vita.checks.hardware_check.kernels import check_tokenwise

    check_tokenwise(report, torch.device("npu", 0))


def _merge(report: Any) -> None:
    from mindspeed_vita.checks.hardware_check.ascend import check_merge

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
    "paged": _paged,
    "tower": _tower,
    "tokenwise": _tokenwise,
    "merge": _merge,
    "many": _many,
    "modes": _modes,
}


def profiled(layout: Any, *, content: dict[str, Any]) -> list[tuple[str, list[str]]]:
    """Trains a recipe whose profile section asks for this rank.

    The stub libraries have no aclprof functions, so torch_npu's own Python code runs, and only what it hands to its C++ part and to CANN's
    parser is taken from it.

    Returns:
        Folder and activities of each profiler that was started.
    """
    from pathlib import Path
    from unittest import mock

    enter()
    from torch_npu.profiler import profiler_interface as interface

    started: list[tuple[str, list[str]]] = []

    def parsed(folder: str, *arguments: Any, **keywords: Any) -> None:
        output = Path(folder) / "ASCEND_PROFILER_OUTPUT"
        output.mkdir()
        (output / "trace_view.json").write_text("[]")

    replaced = dict.fromkeys(("_start_profiler", "_stop_profiler", "_finalize_profiler"), mock.DEFAULT)
    with mock.patch.multiple(interface, **replaced), mock.patch.object(interface.NpuProfiler, "analyse", parsed):
        with mock.patch.object(interface, "_init_profiler", lambda path, kinds: started.append((path, sorted(map(str, kinds))))):
            train(layout, content=content)
    return started


def copies(layout: Any, *, content: dict[str, Any], extra: bool = False) -> list[Any]:
    """What the last step copies between host and chip on this rank, under the layout of the pool's call.

    Args:
        layout: of the pool's call.
        content: the recipe.
        extra: makes a tensor from a number of the host in every micro-batch.
    """
    from unittest import mock

    from mindspeed_vita.engine.step import Stepper
    from tests.distributed.layout_runs import run
    from tests.npu.simulator.device import Copy

    chip, step, forward, found = enter(), Stepper.run, Stepper._forward, []

    def counted(*arguments: Any) -> Any:
        before, inside = len(chip.copies), chip.copies_inside()
        result = step(*arguments)
        found[:] = [copy for copy in chip.copies[before:] if copy.where]
        found.extend([Copy(INSIDE, True, True, (), "torch_npu")] * (chip.copies_inside() - inside))
        return result

    def more(*arguments: Any) -> Any:
        if extra:
            torch.tensor(1.0, device="npu")
        return forward(*arguments)

    with mock.patch.object(Stepper, "run", counted), mock.patch.object(Stepper, "_forward", more):
        run(layout, content=content)
    return found
