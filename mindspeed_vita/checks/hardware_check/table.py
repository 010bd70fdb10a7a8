"""The sections of each device, the most important one first, with a guess of their seconds."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, Optional

from mindspeed_vita.checks.hardware_check import answering, kernels, overlap, rings, speed, step_speed, training
from mindspeed_vita.checks.hardware_check.sections import Section
from mindspeed_vita.checks.hardware_check.sizes import Size
from mindspeed_vita.choices import RECOMPUTES, Recompute
from mindspeed_vita.parallel.layout import ParallelLayout
from mindspeed_vita.platform import Platform

_EARLY: tuple[Recompute, ...] = ("full", "full_but_attention")
"""Modes of recomputation that are measured first. The others are compared with full. Both can offload their inputs."""


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What the sections are given."""

    platform: Platform
    layout: ParallelLayout
    size: Size
    devices: int
    """That the ring's overlap may use."""
    out: Optional[Path] = None
    """Folder for what the planner reads."""
    peak_tflops: float = 0.0
    """Of the device, where the table of engine/work.py does not know it."""


def sections_for(setting: Setting) -> list[Section]:
    """First whether kernels and training are right, then the figures that are asked for most, then the others."""
    return [*_right(setting), *_speeds(setting)]


def _right(setting: Setting) -> list[Section]:
    device, sections = setting.platform.device, []
    if device.type == "npu":
        from mindspeed_vita.checks.hardware_check import ascend

        schemas = partial(_schemas, ascend)
        sections += [
            Section(name="schemas", run=schemas, seconds=5),
            Section(name="statistics", run=partial(ascend.check_statistics, device=device), seconds=5),
            Section(name="merge", run=partial(ascend.check_merge, device=device), seconds=5),
        ]
    return [
        *sections,
        Section(name="blocks", run=partial(kernels.check_blocks, device=device), seconds=40),
        Section(name="tokenwise", run=partial(kernels.check_tokenwise, device=device), seconds=15),
        Section(name="curve", run=partial(training.check_curve, platform=setting.platform, layout=setting.layout), seconds=30),
        Section(name="rings", run=partial(rings.check_rings, device=device), seconds=30),
        Section(name="paged", run=partial(kernels.check_paged, device=device), seconds=20),
        Section(name="tower", run=partial(kernels.check_tower, device=device), seconds=20),
    ]


def _schemas(ascend: Any, report: Any) -> None:
    ascend.check_schemas(report, version("torch-npu"), ascend.installed())


def _speeds(setting: Setting) -> list[Section]:
    platform, layout, size = setting.platform, setting.layout, setting.size
    small, peak = size.name == "tiny", setting.peak_tflops
    step = partial(step_speed.measure_step, platform=platform, layout=layout, size=size, peak_tflops=peak)
    first = "step full"
    answers = partial(answering.measure_answers, platform=platform, layout=layout, size=size)
    calibration = partial(step_speed.measure_calibration, platform=platform, layout=layout, size=size, out=setting.out, peak_tflops=peak)
    hidden, vocabulary = (1536, 151936) if not small else (64, 1024)
    tower = partial(speed.measure_tower, platform=platform, layout=layout, size=size, peak_tflops=peak)
    ring = partial(overlap.measure_overlap, platform=platform, devices=setting.devices, small=small)
    rows, chunk = size.head_rows, size.head_rows // 4
    head = partial(speed.measure_head, platform=platform, rows=rows, hidden=hidden, vocabulary=vocabulary, chunk=chunk)
    attention = partial(speed.measure_attention, platform=platform, tokens=512 if small else size.tokens)
    sections = [
        Section(name="attention speed", run=attention, seconds=15),
        Section(name=first, run=partial(step, recompute="full"), seconds=60),
        Section(name="step full_but_attention", run=partial(step, recompute="full_but_attention"), seconds=60, like=first),
        Section(name="answers", run=answers, seconds=40),
        Section(name="calibration", run=calibration, seconds=60, like=first),
        Section(name="head speed", run=head, seconds=15),
        Section(name="tower speed", run=tower, seconds=20),
        Section(name="tokenwise speed", run=partial(speed.measure_tokenwise, platform=platform, small=small), seconds=15),
        Section(name="ring overlap", run=ring, seconds=60 if setting.devices > 1 else 1),
    ]
    for mode in RECOMPUTES:
        if mode not in _EARLY:
            sections.append(Section(name=f"step {mode}", run=partial(step, recompute=mode), seconds=60, like=first))
    for mode in _EARLY:
        sections.append(Section(name=f"step {mode} offload", run=partial(step, recompute=mode, offload="inputs"), seconds=60, like=first))
    return sections
