"""A tiny model trained for 20 steps on any device, from weights and packs that are the same everywhere, and the speed of a larger one."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from itertools import cycle
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Optional

import numpy as np
import torch

from mindspeed_vita import sharding
from mindspeed_vita.checks.hardware_check.report import Report
from mindspeed_vita.checks.parity.packs import MODEL, SEQ_LENGTH, make_pack
from mindspeed_vita.choices import RECOMPUTES, Recompute
from mindspeed_vita.config import Recipe, recipe_from_dict
from mindspeed_vita.data.batch import PackedBatch
from mindspeed_vita.data.positions import document_positions
from mindspeed_vita.engine.faults import FailedSamples
from mindspeed_vita.engine.step import StepResult
from mindspeed_vita.engine.work import peak_of, speeds
from mindspeed_vita.parallel.layout import ParallelLayout
from mindspeed_vita.platform import Platform

STORED = Path(__file__).with_name("cpu_curve.json")
STEPS = 20
TOLERANCES = {"fp32": 1e-3, "bf16": 1e-2}
"""Relative difference of any step's loss from the CPU's in fp32. Worst seen on CPUs and a simulated Ascend: 1e-6 and 2e-3."""
_STD = 0.05
"""Of the initial weights: with 0.2 a step of Adam is below bf16's resolution, and rounding alone moved losses by 8%."""
SIZES: dict[str, dict[str, Any]] = {
    "tiny": {"tokens": 2048, "model": {"preset": "tiny"}},
    "1.5b": {
        "tokens": 32768,
        "model": {
            "language": {
                "num_layers": 28,
                "hidden_size": 1536,
                "num_heads": 12,
                "num_kv_heads": 2,
                "ffn_hidden_size": 8960,
                "vocab_size": 151936,
                "rope_base": 1e6,
                "tie_embeddings": True,
                "max_positions": 32768,
            }
        },
    },
}
"""Models to measure: Qwen2.5-1.5B's sizes, and the tiny preset where there is no accelerator."""


def check_curve(report: Report, platform: Platform, layout: ParallelLayout) -> None:
    """Losses of the tiny training against those of a CPU."""
    stored = json.loads(STORED.read_text(encoding="utf-8"))["loss"]
    for precision, tolerance in TOLERANCES.items():
        found = curve(platform, layout, precision)
        report.fact(f"loss in {precision}", f"{found[0]:.4f} -> {found[-1]:.4f}, the CPU's in fp32 {stored[0]:.4f} -> {stored[-1]:.4f}")
        worst = max(abs(ours - wanted) / wanted for ours, wanted in zip(found, stored, strict=True))
        report.check(f"{STEPS} steps of a tiny model, {precision}, against the CPU's losses", worst, tolerance)


def curve(platform: Platform, layout: ParallelLayout, precision: str) -> list[float]:
    """Losses of the tiny training on this device."""
    recipe = recipe_from_dict(
        {
            "model": MODEL,
            "data": {"seq_length": SEQ_LENGTH},
            "train": {"precision": precision, "global_batch": 4, "steps": STEPS, "lr": 1e-3, "min_lr": 1e-4, "warmup_fraction": 0.1},
        }
    )
    packs = cycle([make_pack(number, resets, layout) for resets in (True, False) for number in range(4)])
    return [result.loss for result, _ in _steps(recipe, platform, layout, packs, STEPS, draw=_draw_weights)]


def measure(report: Report, platform: Platform, layout: ParallelLayout, size: str, *, steps: int = 3) -> None:
    """A step of a language model's training in each recompute mode, text only, weights and optimizer included.

    Tokens a second, share of the device's peak where that is known, peak memory, and the time over that of recompute=full. The planner
    is calibrated with the seconds, which the JSON report has as numbers. The first step warms up.
    """
    peak = peak_of(platform.device_name(), 0.0)
    found: dict[str, float] = {}
    for mode in sorted(RECOMPUTES, key=lambda mode: mode != "full"):
        recipe = speed_recipe(size, steps, mode)
        tokens = recipe.data.seq_length
        pack = _text_pack(tokens, recipe.model.language.vocab_size)
        name = f"{size} model, {tokens:,} tokens a step, bf16, recompute {mode}"
        try:
            results = list(_steps(recipe, platform, layout, cycle([pack]), steps))[1:]
        except torch.OutOfMemoryError:
            report.fact(name, "does not fit into the device's memory")
            continue
        found[mode] = sum(passed for _, passed in results) / len(results)
        speed = speeds(results[0][0].flops, found[mode], 1, peak)
        text = f"{tokens / found[mode]:,.0f} tokens/s, {speed['tflops_per_device']:.2f} TFLOP/s"
        text += f", MFU {speed['mfu']:.3f}" if "mfu" in speed else ""
        report.fact(name, text + (f", {found[mode] / found['full']:.3f} of full's time" if "full" in found else ""))
        report.measured(f"step seconds, {size}, {tokens} tokens, recompute {mode}", found[mode])
    memory = platform.memory()
    text = f"{memory.peak / 2**30:.1f} GiB" + (f" of {memory.total / 2**30:.0f}" if memory.total else "")
    report.fact("peak memory of the process so far", text)


def speed_recipe(size: str, steps: int, recompute: Recompute = "full") -> Recipe:
    """The recipe of `measure`."""
    settings = SIZES[size]
    return recipe_from_dict(
        {
            "model": settings["model"],
            "data": {"seq_length": settings["tokens"]},
            "train": {"precision": "bf16", "global_batch": 1, "steps": steps, "modules": ["language"], "recompute": recompute},
        }
    )


def _steps(
    recipe: Recipe,
    platform: Platform,
    layout: ParallelLayout,
    packs: Iterator[PackedBatch],
    steps: int,
    draw: Optional[Callable[[torch.nn.Module], None]] = None,
) -> Iterator[tuple[StepResult, float]]:
    """What each step did, and its seconds; `draw` replaces the initial weights."""
    from mindspeed_vita.engine import optimizer as optim
    from mindspeed_vita.engine.objective import build_objective
    from mindspeed_vita.engine.step import Stepper
    from mindspeed_vita.parallel.build import build_model

    model = build_model(recipe, layout, platform.device)
    if draw is not None:
        draw(model)
    wrapped = optim.wrap_model(model, optim.Communication.of(recipe, platform))
    optimizer = optim.build_optimizer(wrapped, recipe, platform)
    schedule = optim.build_schedule(optimizer, recipe.train)
    with TemporaryDirectory() as folder:
        failed = FailedSamples(Path(folder) / "quarantine.jsonl", ())
        parts: dict[str, Any] = {"model": wrapped, "optimizer": optimizer, "batches": packs, "failed": failed}
        stepper = Stepper(recipe, layout, platform, **parts, objective=build_objective(recipe, layout))
        for step in range(1, steps + 1):
            started = time.perf_counter()
            result = stepper.run(step, lambda: schedule.step(increment=1))
            platform.synchronize()
            yield result, time.perf_counter() - started


@torch.no_grad()
def _draw_weights(model: torch.nn.Module) -> None:
    """Weights from the host's generator, alike on every device; an accelerator would draw others."""
    generator = torch.Generator().manual_seed(11)
    for name, parameter in sorted(model.named_parameters()):
        drawn = torch.randn(parameter.shape, generator=generator)
        is_scale = parameter.dim() == 1 and not name.endswith("bias")
        parameter.copy_(1 + 0.1 * drawn if is_scale else _STD * drawn)


def _text_pack(tokens: int, vocabulary: int) -> PackedBatch:
    """Random tokens, all but the last of a document supervised: a long document and two short ones."""
    bounds = torch.tensor([0, tokens // 2, tokens * 3 // 4, tokens])
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randint(0, vocabulary, (tokens,), generator=generator)
    labels = drawn.roll(-1)
    labels[bounds[1:] - 1] = -100
    return PackedBatch(
        tokens_T=drawn,
        labels_T=labels,
        weights_T=(labels != -100).float(),
        positions_T=torch.from_numpy(document_positions(bounds.numpy())),
        cu_seqlens=bounds,
        sample_cu=bounds,
        sample_ids=torch.arange(3),
        source_ids=torch.zeros(3, dtype=torch.int64),
        tile_first_token=torch.zeros(0, dtype=torch.int64),
        context_ids=(),
        tiles_NCHW=torch.zeros(0, 3, 1, 1, dtype=torch.uint8),
        tile_range=range(0),
        failed=torch.zeros(3, dtype=torch.bool),
        failures=(),
        cp_plan=sharding.make_cp_plan(np.asarray(bounds), 1),
    )
