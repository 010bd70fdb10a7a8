"""How fast a step of training is: one recompute mode at a time, and the step that the planner is calibrated with."""

from __future__ import annotations

import json
from itertools import cycle
from pathlib import Path
from typing import Any, Optional

import numpy as np
import torch
import yaml

from mindspeed_vita import sharding
from mindspeed_vita.checks.hardware_check.report import Report
from mindspeed_vita.checks.hardware_check.sizes import Size
from mindspeed_vita.checks.hardware_check.training import trained_steps
from mindspeed_vita.choices import Offload, Recompute
from mindspeed_vita.config import Recipe, recipe_from_dict
from mindspeed_vita.data.batch import PackedBatch
from mindspeed_vita.data.positions import document_positions
from mindspeed_vita.engine.work import peak_of, speeds
from mindspeed_vita.files.writing import write_text
from mindspeed_vita.parallel.layout import ParallelLayout
from mindspeed_vita.platform import Platform

STEPS = 3
"""The first one warms up."""
VISION, SUPERVISED, DOCUMENTS = 0.9, 0.1, 8
"""Of the calibration's pack: what the planner's traces are filled with (planner.trace.packs.PackContent)."""
PLANNED, MEASURED = "calibration.yaml", "calibration.jsonl"
"""The recipe that was measured, and its steps: `vita plan FOLDER/calibration.yaml --device H100 --calibrate FOLDER/calibration.jsonl`."""


def measure_step(
    report: Report,
    platform: Platform,
    layout: ParallelLayout,
    size: Size,
    *,
    recompute: Recompute,
    offload: Offload = "none",
    peak_tflops: float = 0.0,
) -> None:
    """A step of a language model's training, text only, weights and optimizer included.

    Tokens a second, share of the device's peak where that is known, peak memory, and the time over that of recompute=full if that was
    measured before. peak_tflops is the peak of a device that the table of engine/work.py does not know.
    """
    recipe = speed_recipe(size, recompute, offload)
    pack = text_pack(recipe.data.seq_length, recipe.model.language.vocab_size)
    mode = recompute if offload == "none" else f"{recompute}, inputs offloaded"
    name = f"{size.name} model, {size.tokens:,} tokens a step, bf16, recompute {mode}"
    seconds = _timed(report, platform, layout, recipe, pack, name, peak_tflops)
    if seconds is None:
        return
    key = f"step seconds, {size.name}, {size.tokens} tokens, recompute "
    mean = _warm_mean(seconds)
    report.measured(key + mode, mean)
    if (full := report.numbers.get(f"{key}full")) and mode != "full":
        report.fact(f"{name}, time over full's", f"{mean / full:.3f}")
        report.measured(f"{key}{mode}, over full", mean / full)


def measure_calibration(
    report: Report, platform: Platform, layout: ParallelLayout, size: Size, *, out: Optional[Path] = None, peak_tflops: float = 0.0
) -> None:
    """A step of the whole model over a pack such as `vita plan` traces: with tower, projector, and nine tenths of vision tokens.

    Args:
        report: takes the figures.
        platform, layout: the device.
        size: of the language model; the tower is that of the recipe's defaults.
        out: receives what `vita plan --calibrate` reads; None: nothing is written.
        peak_tflops: as for measure_step.
    """
    content = calibration_recipe(size)
    recipe = recipe_from_dict(content)
    name = f"{size.name} model with its tower, {size.tokens:,} tokens a step, bf16, recompute full"
    seconds = _timed(report, platform, layout, recipe, vision_pack(recipe), name, peak_tflops)
    if seconds is None:
        return
    report.measured(f"calibration seconds, {size.name}, {size.tokens} tokens", _warm_mean(seconds))
    if out is not None:
        write_text(out / PLANNED, yaml.safe_dump(content, sort_keys=False))
        lines = [json.dumps({"step": step, "seconds": passed}) for step, passed in enumerate(seconds, 1)]
        write_text(out / MEASURED, "\n".join(lines) + "\n")
        report.fact("for the planner", f"vita plan {PLANNED} --device NAME --calibrate {MEASURED}")


def speed_recipe(size: Size, recompute: Recompute = "full", offload: Offload = "none") -> Recipe:
    """The recipe of `measure_step`."""
    train = {"modules": ["language"], "recompute": recompute, "offload": offload}
    return recipe_from_dict(_content(size, **train))


def calibration_recipe(size: Size) -> dict[str, Any]:
    """The recipe of `measure_calibration`, as a file has it."""
    return {"name": f"calibration-{size.name}", **_content(size, recompute="full")}


def _content(size: Size, **train: Any) -> dict[str, Any]:
    told = {"precision": "bf16", "global_batch": 1, "steps": STEPS, **train}
    return {"model": size.model, "data": {"seq_length": size.tokens}, "train": told}


def _timed(
    report: Report, platform: Platform, layout: ParallelLayout, recipe: Recipe, pack: PackedBatch, name: str, peak_tflops: float
) -> Optional[list[float]]:
    """Seconds of each step; None where the device's memory is too small. The report gets the speed."""
    if platform.capabilities.accelerator:
        torch.get_device_module(platform.device).reset_peak_memory_stats()
    try:
        results = list(trained_steps(recipe, platform, layout, cycle([pack]), STEPS))
        seconds = [passed for _, passed in results]
    except torch.OutOfMemoryError:
        report.fact(name, "does not fit into the device's memory")
        return None
    mean = _warm_mean(seconds)
    found = speeds(results[0][0].flops, mean, 1, peak_of(platform.device_name(), peak_tflops))
    memory = platform.memory()
    parts = [f"{mean:.3f} s", f"{recipe.data.seq_length / mean:,.0f} tokens/s", f"{found['tflops_per_device']:.2f} TFLOP/s"]
    parts += [f"MFU {found['mfu']:.3f}"] if "mfu" in found else ["no MFU: the peak is not known (--peak-tflops)"]
    kind = "peak memory" if platform.capabilities.accelerator else "peak memory of the process so far"
    parts.append(f"{kind} {memory.peak / 2**30:.1f} GiB" + (f" of {memory.total / 2**30:.0f}" if memory.total else ""))
    report.fact(name, ", ".join(parts))
    return seconds


def _warm_mean(seconds: list[float]) -> float:
    return sum(seconds[1:]) / len(seconds[1:])


def text_pack(tokens: int, vocabulary: int) -> PackedBatch:
    """Random tokens, all but the last of a document supervised: a long document and two short ones."""
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randint(0, vocabulary, (tokens,), generator=generator)
    bounds = np.array([0, tokens // 2, tokens * 3 // 4, tokens])
    labels = drawn.roll(-1)
    labels[torch.from_numpy(bounds[1:] - 1)] = -100
    return _pack(drawn, labels, bounds)


def vision_pack(recipe: Recipe) -> PackedBatch:
    """Documents that begin with tiles, each between two markers, and end with the supervised tokens. Tiles are noise."""
    length, rows, size = recipe.data.seq_length, recipe.model.tokens_per_tile, recipe.model.vision.tile_size
    bounds = np.linspace(0, length, DOCUMENTS + 1).astype(np.int64)
    tokens, labels = torch.ones(length, dtype=torch.int64), torch.full((length,), -100)
    first = []
    for start, stop in zip(bounds[:-1].tolist(), bounds[1:].tolist()):
        tiles = int(VISION * (stop - start)) // (rows + 2)
        first += [start + 1 + tile * (rows + 2) for tile in range(tiles)]
        labels[stop - int(SUPERVISED * (stop - start)) : stop] = 1
    for place in first:
        tokens[place : place + rows] = 0
    generator = torch.Generator().manual_seed(0)
    tiles_NCHW = torch.randint(0, 256, (len(first), 3, size, size), generator=generator, dtype=torch.uint8)
    return _pack(tokens, labels, bounds, first=torch.tensor(first), tiles=tiles_NCHW)


def _pack(
    tokens: torch.Tensor,
    labels: torch.Tensor,
    bounds: np.ndarray,
    *,
    first: Optional[torch.Tensor] = None,
    tiles: Optional[torch.Tensor] = None,
) -> PackedBatch:
    first = torch.zeros(0, dtype=torch.int64) if first is None else first
    documents, cu_seqlens = len(bounds) - 1, torch.from_numpy(bounds)
    return PackedBatch(
        tokens_T=tokens,
        labels_T=labels,
        weights_T=(labels != -100).float(),
        positions_T=torch.from_numpy(document_positions(bounds)),
        cu_seqlens=cu_seqlens,
        sample_cu=cu_seqlens,
        sample_ids=torch.arange(documents),
        source_ids=torch.zeros(documents, dtype=torch.int64),
        tile_first_token=first,
        context_ids=(0,) if len(first) else (),
        tiles_NCHW=torch.zeros(0, 3, 1, 1, dtype=torch.uint8) if tiles is None else tiles,
        tile_range=range(len(first)),
        failed=torch.zeros(documents, dtype=torch.bool),
        failures=(),
        cp_plan=sharding.make_cp_plan(bounds, 1),
    )
