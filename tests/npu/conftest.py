"""Processes on simulated NPUs, shared by the tests of this folder; skipped where torch_npu's wheel or a compiler is missing."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Iterator

import pytest
import torch

from mindspeed_vita.checks.parity.pool import LayoutPool
from tests.npu.simulator.enter import environment
from tests.npu.simulator.stubs import build_stubs, missing_tools
from tests.tiny_data import curve, tiny

__all__ = ["curve", "tiny"]
OVERLAY = "VITA_TORCH_NPU"
"""Environment variable with a folder that holds an unpacked torch_npu wheel."""


@pytest.fixture(scope="session")
def overlay() -> Path:
    """Folder with torch_npu, for the torch that is installed."""
    folder = os.environ.get(OVERLAY)
    if not folder:
        pytest.skip(f"{OVERLAY} is not set to a folder with an unpacked torch_npu wheel; scripts/test.sh makes one")
    found = [path.stem.split("-")[1] for path in Path(folder).glob("torch_npu-*.dist-info")]
    wanted = torch.__version__.split("+")[0]
    if found != [wanted]:
        pytest.skip(f"{OVERLAY} holds torch_npu {', '.join(found) or 'of no version'}; torch {wanted} needs torch_npu {wanted}")
    if missing_tools():
        pytest.skip(f"{', '.join(missing_tools())} not found; the simulated Ascend builds stub libraries with them")
    return Path(folder)


@pytest.fixture(scope="session")
def simulated(overlay: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Environment of a process on simulated NPUs."""
    stubs = tmp_path_factory.mktemp("cann")
    build_stubs(overlay, stubs)
    return environment(overlay, stubs)


@pytest.fixture(scope="session")
def _pools(overlay: Path, simulated: dict[str, str]) -> Iterator[list[LayoutPool]]:
    pools: list[LayoutPool] = []
    yield pools
    for pool in pools:
        pool.close()


@pytest.fixture
def npus(_pools: list[LayoutPool], overlay: Path, simulated: dict[str, str]) -> LayoutPool:
    """Four workers with a simulated NPU each; made anew after one of them failed."""
    if not _pools or _pools[-1].closed:
        _pools.append(LayoutPool(4, str(overlay), prepare="tests.npu.simulator.enter:enter", environment=simulated))
    return _pools[-1]
