"""A tiny model trained for 20 steps on any device, from weights and packs that are the same everywhere."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from itertools import cycle
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Optional

import torch

from mindspeed_vita.checks.hardware_check.report import Report
from mindspeed_vita.checks.parity.packs import MODEL, SEQ_LENGTH, make_pack
from mindspeed_vita.config import Recipe, recipe_from_dict
from mindspeed_vita.data.batch import PackedBatch
from mindspeed_vita.engine.faults import FailedSamples
from mindspeed_vita.engine.step import StepResult
from mindspeed_vita.parallel.layout import ParallelLayout
from mindspeed_vita.platform import Platform

STORED = Path(__file__).with_name("cpu_curve.json")
STEPS = 20
TOLERANCES = {"fp32": 1e-3, "bf16": 1e-2}
"""Relative difference of any step's loss from the CPU's in fp32. Worst seen on CPUs and a simulated Ascend: 1e-6 and 2e-3."""
_STD = 0.05
"""Of the initial weights: with 0.2 a step of Adam is below bf16's resolution, and rounding alone moved losses by 8%."""


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
    return [result.loss for result, _ in trained_steps(recipe, platform, layout, packs, STEPS, draw=_draw_weights)]


def trained_steps(
    recipe: Recipe,
    platform: Platform,
    layout: ParallelLayout,
    packs: Iterator[PackedBatch],
    steps: int,
    draw: Optional[Callable[[torch.nn.Module], None]] = None,
) -> Iterator[tuple[StepResult, float]]:
    """What each step did, and its seconds.

    Args:
        recipe, platform, layout: of the training.
        packs: as many as the steps take.
        steps: how many.
        draw: replaces the initial weights.
    """
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

