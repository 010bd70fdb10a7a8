"""The command behind scripts/npu_check.py and scripts/gpu_check.py: runs the checks of a device and says what they found."""

from __future__ import annotations

import argparse
import os
import platform as python_platform
from collections.abc import Callable, Sequence
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Optional

from mindspeed_vita.checks.hardware_check import kernels, rings, speed, training
from mindspeed_vita.checks.hardware_check.report import Report
from mindspeed_vita.config import recipe_from_dict
from mindspeed_vita.engine.session import distributed
from mindspeed_vita.parallel.layout import ParallelLayout
from mindspeed_vita.platform import Platform, get_platform

_PACKAGES = ("torch", "torch-npu", "flash-attn", "flash-attn-3", "flash-attn-4", "triton", "liger-kernel", "megatron-core", "numpy")
_HEAD = {"rows": 4096, "hidden": 1536, "vocabulary": 151936, "chunk": 1024}
"""The 1.5B model's, an eighth of 32,768 tokens supervised."""
Sections = dict[str, Callable[[Report], None]]


def main(device: str, argv: Optional[Sequence[str]] = None) -> int:
    """Runs the checks.

    Args:
        device: npu or cuda; the environment variable DEVICE replaces it, which makes the checks run, for themselves, on a CPU.
        argv: command line; None takes that of the process.

    Returns:
        exit status: 0 when everything passed, else 1.
    """
    parser = argparse.ArgumentParser(description=f"Are kernels, ring and training right on this {device}? Prints PASS or FAIL a check.")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything there too")
    parser.add_argument("--only", default="", metavar="NAMES", help="sections to run, by comma; default: all")
    parser.add_argument("--note", default="", help="a line that is kept in the report, such as the machine's name")
    parser.add_argument("--size", choices=sorted(training.SIZES), help="model whose speed is measured; default: 1.5b, on a CPU tiny")
    arguments = parser.parse_args(argv)
    platform = get_platform(os.environ.get("DEVICE") or device)
    report = Report()
    with distributed(recipe_from_dict({}), platform) as layout:
        versions(report, platform, arguments.note)
        sections = sections_for(platform, layout, arguments.size)
        chosen = [name for name in arguments.only.split(",") if name] or list(sections)
        if unknown := set(chosen) - set(sections):
            parser.error(f"--only names {', '.join(sorted(unknown))}; sections are {', '.join(sections)}")
        for name in chosen:
            report.section(name, sections[name])
    failed = [outcome.name for outcome in report.outcomes if not outcome.passed]
    print(f"{'PASS' if report.passed else 'FAIL'}: {len(report.outcomes) - len(failed)} of {len(report.outcomes)} checks passed")
    for name in failed:
        print(f"  failed: {name}")
    if arguments.json:
        report.write(arguments.json)
    return 0 if report.passed else 1


def sections_for(platform: Platform, layout: ParallelLayout, size: Optional[str] = None) -> Sections:
    """The checks of a device by name, in the order they run."""
    device = platform.device
    sections: Sections = {}
    if device.type == "npu":
        from mindspeed_vita.checks.hardware_check import ascend

        sections["schemas"] = lambda report: ascend.check_schemas(report, version("torch-npu"), ascend.installed())
        sections["statistics"] = partial(ascend.check_statistics, device=device)
        sections["merge"] = partial(ascend.check_merge, device=device)
    sections["blocks"] = partial(kernels.check_blocks, device=device)
    sections["paged"] = partial(kernels.check_paged, device=device)
    sections["tower"] = partial(kernels.check_tower, device=device)
    sections["tokenwise"] = partial(kernels.check_tokenwise, device=device)
    sections["rings"] = partial(rings.check_rings, device=device)
    sections["curve"] = partial(training.check_curve, platform=platform, layout=layout)
    measured = size or ("1.5b" if platform.capabilities.accelerator else "tiny")
    small = measured == "tiny"
    if device.type != "npu":  # the simulated Ascend has no scaled_dot_product_attention to compare with
        sections["attention speed"] = partial(speed.measure_attention, platform=platform, tokens=512 if small else 32768)
    head: dict[str, Any] = {"rows": 64, "hidden": 64, "vocabulary": 1024, "chunk": 32} if small else _HEAD
    sections["head speed"] = partial(speed.measure_head, platform=platform, **head)
    sections["speed"] = partial(training.measure, platform=platform, layout=layout, size=measured)
    return sections


def versions(report: Report, platform: Platform, note: str) -> None:
    """What is installed, and which device it runs on."""
    if note:
        report.fact("note", note)
    report.fact("device", platform.describe_hardware())
    report.fact("python", python_platform.python_version())
    for name in _PACKAGES:
        try:
            report.fact(name, version(name))
        except PackageNotFoundError:
            report.fact(name, "not installed")
