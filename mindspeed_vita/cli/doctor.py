"""`vita doctor`: what this machine has, and whether parallel training is exact on it."""

from __future__ import annotations

import argparse
import importlib.metadata
import platform as python_platform
import tempfile

_PACKAGES = ("torch", "torch_npu", "megatron-core", "transformers", "safetensors", "av", "numpy")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the subcommand."""
    parser.add_argument(
        "--parity",
        action="store_true",
        help="train one step of a tiny model under every parallel layout that fits here and compare loss and gradients with one process",
    )
    parser.add_argument(
        "--processes", type=int, default=0, metavar="N", help="with --parity: most processes (default: one a device; 4 on a CPU)"
    )


def run(arguments: argparse.Namespace) -> int:
    """Prints the report; 0 when nothing is wrong, 1 when a layout differs."""
    from mindspeed_vita.platform import get_platform

    if arguments.processes < 0:
        raise ValueError(f"--processes is {arguments.processes}; expected at least 1")
    device = get_platform(local_rank=0)
    print(f"python {python_platform.python_version()}")
    for name in _PACKAGES:
        print(f"{name} {_version(name)}")
    print(f"device {device.name}, collectives {device.backend}")
    if not arguments.parity:
        return 0
    from mindspeed_vita.engine.parity.check import check_layouts

    processes = arguments.processes or (device.device_count() if device.capabilities.accelerator else 4)
    with tempfile.TemporaryDirectory() as folder:
        equal = check_layouts(processes, folder, lambda line: print(line, flush=True))
    print("PASS: every layout that fits gives one process's loss and gradients" if equal else "FAIL: a layout differs from one process")
    return 0 if equal else 1


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
