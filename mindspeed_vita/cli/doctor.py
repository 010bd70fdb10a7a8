"""`vita doctor`: do the versions here go together, what is there to train on, and is parallel training exact on it."""

from __future__ import annotations

import argparse
import os
import tempfile

from mindspeed_vita.checks.doctor.device import look
from mindspeed_vita.checks.doctor.disk import read_speed
from mindspeed_vita.checks.doctor.installation import Installation, inspect, versions
from mindspeed_vita.checks.doctor.report import as_json, as_text
from mindspeed_vita.checks.doctor.rules import Finding, judge, judge_disk
from mindspeed_vita.choices import DEVICES, ENGINES

_EPILOG = """
Exit status: 0 nothing is wrong (notes may remain), 1 there is a problem, or with --parity a layout differs.
docs/guides/versions.md has the table of versions and what to do about the common complaints.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the subcommand."""
    parser.epilog = _EPILOG
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--device", choices=("auto", *DEVICES), help="what to judge for (default: DEVICE, else what is found)")
    parser.add_argument(
        "--engine", choices=("auto", *ENGINES), default="auto", help="what to judge for (auto: mindspeed-llm on NPUs)"
    )
    parser.add_argument("--data", metavar="DIR", help="folder whose reading speed is measured (default: DATA_ROOT, if it is set)")
    parser.add_argument(
        "--parity",
        action="store_true",
        help="train one step of a tiny model under every parallel layout that fits here and compare loss and gradients with one process",
    )
    parser.add_argument(
        "--processes", type=int, default=0, metavar="N", help="with --parity: most processes (default: one a device; 4 on a CPU)"
    )


def run(arguments: argparse.Namespace) -> int:
    """Prints the report; 0 when nothing is wrong, 1 otherwise."""
    if arguments.processes < 0:
        raise ValueError(f"--processes is {arguments.processes}; expected at least 1")
    if arguments.parity:
        return _parity(arguments.processes)
    here = inspect()
    kind, engine = _choose(arguments, here)
    findings = judge(here, look(kind), kind=kind, engine=engine)
    findings += _disk(arguments.data or os.environ.get("DATA_ROOT", ""))
    print((as_json if arguments.json else as_text)(findings, kind=kind, engine=engine))
    return 1 if any(finding.status == "problem" for finding in findings) else 0


def _choose(arguments: argparse.Namespace, here: Installation) -> tuple[str, str]:
    asked = arguments.device or os.environ.get("DEVICE") or "auto"
    kind = here.kind if asked == "auto" else asked
    if kind not in DEVICES:
        raise ValueError(f"DEVICE={kind!r} is not known; use one of auto, {', '.join(DEVICES)}")
    engine = arguments.engine
    if engine == "auto":
        engine = "mindspeed-llm" if kind == "npu" else "builtin"
    if engine == "mindspeed-llm" and kind != "npu":
        raise ValueError(f"--engine mindspeed-llm runs on NPUs, the device here is {kind}")
    return kind, engine


def _disk(path: str) -> list[Finding]:
    if not path:
        return []
    try:
        return [judge_disk(path, read_speed(path))]
    except ValueError as error:
        return [judge_disk(path, None, str(error))]


def _parity(most: int) -> int:
    from mindspeed_vita.checks.parity.check import check_layouts
    from mindspeed_vita.platform import get_platform

    device = get_platform(local_rank=0)
    found = ", ".join(f"{name} {version}" for name, version in versions(("torch", "torch_npu", "megatron-core")).items() if version)
    print(f"{found}; device {device.name}, collectives {device.collectives}", flush=True)
    processes = most or (device.device_count() if device.capabilities.accelerator else 4)
    with tempfile.TemporaryDirectory() as folder:
        equal = check_layouts(processes, folder, lambda line: print(line, flush=True))
    print("PASS: every layout that fits gives one process's loss and gradients" if equal else "FAIL: a layout differs from one process")
    return 0 if equal else 1
