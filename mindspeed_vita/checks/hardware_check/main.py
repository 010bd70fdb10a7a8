"""The command behind scripts/npu_check.py and scripts/gpu_check.py: runs the checks of a device and says what they found."""

from __future__ import annotations

import argparse
import gc
import os
import platform as python_platform
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Optional

import torch

from mindspeed_vita.checks.hardware_check import sizes
from mindspeed_vita.checks.hardware_check.report import Report
from mindspeed_vita.checks.hardware_check.sections import run_sections
from mindspeed_vita.checks.hardware_check.table import Setting, sections_for
from mindspeed_vita.config import recipe_from_dict
from mindspeed_vita.engine.session import distributed
from mindspeed_vita.files.writing import write_text
from mindspeed_vita.platform import Platform, get_platform

_PACKAGES = ("torch", "torch-npu", "flash-attn", "flash-attn-3", "flash-attn-4", "triton", "liger-kernel", "megatron-core", "numpy")
BUDGET = 500.0
"""Seconds. With the start of Python and of the device a run stays below 9 minutes."""


def main(device: str, argv: Optional[Sequence[str]] = None) -> int:
    """Runs the checks.

    Args:
        device: npu or cuda; the environment variable DEVICE replaces it, which makes the checks run, for themselves, on a CPU.
        argv: command line; None takes that of the process.

    Returns:
        exit status: 0 when everything that ran passed, else 1.
    """
    parser = _parser(device)
    arguments = parser.parse_args(argv)
    try:
        platform = get_platform(os.environ.get("DEVICE") or device)
    except ValueError as error:
        parser.error(f"this script needs one {device}, unless the environment variable DEVICE names another device: {error}")
    report = Report()
    if arguments.out:
        arguments.out.mkdir(parents=True, exist_ok=True)
    with distributed(recipe_from_dict({}), platform) as layout:
        versions(report, platform, arguments.note)
        size = sizes.SIZES[arguments.size or ("1.5b" if platform.capabilities.accelerator else "tiny")]
        devices = platform.device_count() if arguments.devices is None else arguments.devices
        sections = sections_for(
            Setting(
                platform=platform, layout=layout, size=size, devices=devices, out=arguments.out, peak_tflops=arguments.peak_tflops
            )
        )
        names = [section.name for section in sections]
        chosen = [name for name in arguments.only.split(",") if name] or names
        if unknown := set(chosen) - set(names):
            parser.error(f"--only names {', '.join(sorted(unknown))}; sections are {', '.join(names)}")

        def after() -> None:
            _free(platform)
            _write(report, arguments, platform)

        run_sections(report, [section for section in sections if section.name in chosen], budget=arguments.budget, after=after)
    skipped = f"; {len(report.skipped)} sections skipped" if report.skipped else ""
    passed = len(report.outcomes) - len(report.failed)
    print(f"{'PASS' if report.passed else 'FAIL'}: {passed} of {len(report.outcomes)} checks passed{skipped}")
    for outcome in report.failed:
        print(f"  failed: {outcome.name}")
    for name, reason in report.skipped.items():
        print(f"  skipped: {name}: {reason}")
    return 0 if report.passed else 1


def _parser(device: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=f"Are kernels, ring and training right on this {device}? Prints PASS or FAIL a check.")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything there too, after each section anew")
    parser.add_argument(
        "--out", type=Path, metavar="FOLDER", help="write report.md, report.json, and what `vita plan --calibrate` reads, into a folder"
    )
    parser.add_argument("--only", default="", metavar="NAMES", help="sections to run, by comma; default: all")
    parser.add_argument("--note", default="", help="a line that is kept in the report, such as the machine's name")
    parser.add_argument("--size", choices=sorted(sizes.SIZES), help="model whose speed is measured; default: 1.5b, on a CPU tiny")
    parser.add_argument(
        "--budget", type=float, default=BUDGET, metavar="SECONDS", help=f"sections that would not end in time are skipped ({BUDGET:.0f})"
    )
    parser.add_argument("--devices", type=int, metavar="N", help="devices for the ring's overlap; default: all of this host, one on a CPU")
    parser.add_argument(
        "--peak-tflops", type=float, default=0.0, metavar="N", help="dense bf16 TFLOP/s of one device, for MFU; default: known for GPUs"
    )
    return parser


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


def _free(platform: Platform) -> None:
    """What one section allocated is there for the next one."""
    gc.collect()
    if platform.capabilities.accelerator:
        torch.get_device_module(platform.device).empty_cache()


def _write(report: Report, arguments: argparse.Namespace, platform: Platform) -> None:
    if arguments.json:
        report.write(arguments.json)
    if arguments.out:
        report.write(arguments.out / "report.json")
        page = report.page(f"Hardware check of {platform.describe_hardware()}")
        write_text(arguments.out / "report.md", page)
