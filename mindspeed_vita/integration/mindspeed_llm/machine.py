"""What a machine must have before MindSpeed-LLM is imported: CANN, a torch_npu that fits, and the upstream projects that fit."""

from __future__ import annotations

import importlib.machinery
import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Optional

import torch

from mindspeed_vita.platform import npu

CORE = "0.12"
"""The megatron-core line that MindSpeed-LLM 26.1.0 pairs with."""
_SOURCES = {
    "megatron.core": "Megatron-LM (branch core_v0.12.1)",
    "mindspeed": "MindSpeed (branch 26.1.0_core_r0.12.1)",
    "mindspeed_llm": "MindSpeed-LLM (branch 26.1.0)",
}


def check_machine(environment: Mapping[str, str] = os.environ) -> None:
    """CANN, torch_npu and the three upstream projects are there and fit each other. Imports torch_npu, but no upstream project.

    Raises:
        ValueError: one message with every problem.
    """
    problems = [*_ascend(environment), *_upstream()]
    if problems:
        raise ValueError("MindSpeed-LLM cannot start here: " + "; ".join([*problems, "`vita doctor` shows everything at once"]))


def _ascend(environment: Mapping[str, str]) -> list[str]:
    problems = []
    home = environment.get("ASCEND_HOME_PATH") or environment.get("ASCEND_TOOLKIT_HOME")
    if not home or not Path(home).is_dir():
        found = f"ASCEND_HOME_PATH={home!r} is no folder" if home else "ASCEND_HOME_PATH is not set"
        problems.append(f"CANN is missing: {found}; install CANN 9.1.0 and source its set_env.sh")
    reason = npu.why_unavailable()
    if reason is not None:
        return [*problems, f"{reason}; install the wheel that pairs with torch {torch.__version__}, and source CANN's set_env.sh"]
    found_npu = sys.modules["torch_npu"].__version__
    mine, theirs = release(torch.__version__), release(found_npu)
    if mine != theirs:
        problems.append(
            f"torch_npu {found_npu} does not match torch {torch.__version__}; "
            f"install torch_npu {_dotted(mine)} (any post release), or torch {_dotted(theirs)}"
        )
    return problems


def release(version: str) -> tuple[int, int, int]:
    """(major, minor, patch) of a version such as 2.7.1.post8 or 2.13.0+cpu; a torch_npu is built for all three."""
    match = re.match(r"(\d+)\.(\d+)(?:\.(\d+))?", version)
    assert match, version
    return int(match[1]), int(match[2]), int(match[3] or 0)


def _dotted(numbers: tuple[int, int, int]) -> str:
    return ".".join(map(str, numbers))


def _upstream() -> list[str]:
    problems = []
    for name, what in _SOURCES.items():
        if _find(name) is None:
            problems.append(f"{what} is not on the path; clone it and put it on PYTHONPATH (scripts/install_ascend.sh does)")
    if problems:
        return problems
    if _find("megatron.training") is None:
        problems.append(f"megatron.core comes from a wheel without megatron.training; put {_SOURCES['megatron.core']} first on PYTHONPATH")
    core = core_version()
    if not core.startswith(f"{CORE}."):
        problems.append(f"megatron.core is {core}, but {CORE}.x is needed; put {_SOURCES['megatron.core']} first on PYTHONPATH")
    return problems


def _find(name: str) -> Optional[Path]:
    """Where a module lies, without running it: parents are searched for, not imported."""
    *parents, leaf = name.split(".")
    folders: Optional[list[str]] = None
    for part in parents:
        spec = importlib.machinery.PathFinder.find_spec(part, folders)
        if spec is None or spec.submodule_search_locations is None:
            return None
        folders = list(spec.submodule_search_locations)
    spec = importlib.machinery.PathFinder.find_spec(leaf, folders)
    if spec is None:
        return None
    return Path(spec.origin) if spec.origin else Path(next(iter(spec.submodule_search_locations or ())))


def core_version() -> str:
    """Version that megatron.core's files say, read rather than imported."""
    origin = _find("megatron.core")
    assert origin is not None
    text = (origin.parent / "package_info.py").read_text(encoding="utf-8")
    parts = [re.search(rf"^{part} = (\d+)", text, re.MULTILINE) for part in ("MAJOR", "MINOR", "PATCH")]
    return ".".join(match[1] for match in parts if match)
