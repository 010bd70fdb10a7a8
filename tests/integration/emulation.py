"""Runs a process with real MindSpeed-LLM on the emulated torch_npu: VITA_UPSTREAM names the checkouts, VITA_MINDSPEED_PYTHON a Python."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PROJECTS = ("MindSpeed-LLM", "MindSpeed", "Megatron-LM")
REQUIRED = ("datasets", "einops", "ninja", "peft", "pybind11", "scipy", "sentencepiece", "tiktoken", "transformers")
"""What MindSpeed-LLM imports beside torch."""


def upstream() -> Path:
    """The folder of the checkouts; skips the test where there is none."""
    folder = os.environ.get("VITA_UPSTREAM")
    if not folder or not all(Path(folder, project).is_dir() for project in PROJECTS):
        pytest.skip("VITA_UPSTREAM names no folder with Megatron-LM, MindSpeed and MindSpeed-LLM")
    return Path(folder)


def interpreter() -> str:
    """A Python with MindSpeed-LLM's requirements; skips the test where there is none."""
    python = os.environ.get("VITA_MINDSPEED_PYTHON", sys.executable)
    missing = _missing(python)
    if missing:
        pytest.skip(f"{python} lacks what MindSpeed-LLM imports: {missing}; VITA_MINDSPEED_PYTHON may name another one")
    return python


def environment(cann: Path) -> dict[str, str]:
    """Environment variables of such a process.

    Args:
        cann: any folder; it stands for an installed CANN.
    """
    folders = [ROOT, ROOT / "tests" / "integration" / "emulated_npu", *(upstream() / project for project in PROJECTS)]
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(map(str, folders)),
        "ASCEND_HOME_PATH": str(cann),
        "CUDA_DEVICE_MAX_CONNECTIONS": "1",
        "PYTHONWARNINGS": "ignore",
    }


def run(arguments: Sequence[str], cann: Path, *, timeout: float = 300) -> subprocess.CompletedProcess[str]:
    """Runs the interpreter with arguments in a folder, to its end.

    Args:
        arguments: of the interpreter: a script and its arguments.
        cann: working folder, which also stands for CANN.
        timeout: seconds.
    """
    command = [interpreter(), *arguments]
    return subprocess.run(command, cwd=cann, env=environment(cann), capture_output=True, text=True, timeout=timeout)


@functools.lru_cache
def _missing(python: str) -> str:
    code = f"import importlib.util as u; print(*(name for name in {REQUIRED!r} if u.find_spec(name) is None))"
    return subprocess.run([python, "-c", code], capture_output=True, text=True, timeout=60, check=True).stdout.strip()
