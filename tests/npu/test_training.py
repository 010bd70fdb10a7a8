"""The tiny recipe through the built-in engine on simulated NPUs gives the CPU's losses and gradient norms."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any, Callable

import pytest
import yaml

from mindspeed_vita.checks.parity.pool import LayoutPool
from mindspeed_vita.config import recipe_to_dict
from mindspeed_vita.engine.loop import train
from tests.npu.simulator.enter import ROOT
from tests.tiny_data import TinyData

pytestmark = [pytest.mark.distributed, pytest.mark.slow]
STEPS = 10
SAME = {"rel": 1e-5}
"""Worst seen: 8e-7; fp32 sums in another order."""
Columns = Callable[..., list[float]]


@pytest.fixture(scope="module")
def start(tiny: TinyData, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights to start from: an NPU draws other ones than a CPU."""
    directory = tmp_path_factory.mktemp("start")
    train(tiny.recipe(directory), stop_at_step=1)
    return directory


@pytest.fixture(scope="module")
def content(tiny: TinyData, start: Path) -> Callable[[Path], dict[str, Any]]:
    """The recipe, for a folder of its own."""
    return lambda directory: recipe_to_dict(tiny.recipe(directory, checkpoint={"init_from": str(start)}, train={"steps": STEPS}))


@pytest.fixture(scope="module")
def on_the_cpu(tiny: TinyData, start: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same run on a CPU."""
    directory = tmp_path_factory.mktemp("cpu")
    train(tiny.recipe(directory, checkpoint={"init_from": str(start)}, train={"steps": STEPS}))
    return directory


@pytest.mark.parametrize(("tp", "cp"), [(1, 1), (2, 1), (1, 2)], ids=["one", "tp2", "cp2"])
def test_a_run_follows_the_cpu(
    npus: LayoutPool, content: Callable[[Path], dict[str, Any]], on_the_cpu: Path, curve: Columns, tmp_path: Path, tp: int, cp: int
) -> None:
    devices = npus.run("tests.npu.runs:train", tp=tp, cp=cp, content=content(tmp_path))
    assert devices == [f"npu:{rank}" for rank in range(tp * cp)]
    for key in ("loss", "grad_norm"):
        assert curve(tmp_path, key) == pytest.approx(curve(on_the_cpu, key), **SAME)
    assert curve(tmp_path, "supervised") == curve(on_the_cpu, "supervised")


def test_the_profilers_window_is_that_of_torch_npu(npus: LayoutPool, content: Callable[[Path], dict[str, Any]], tmp_path: Path) -> None:
    recipe = {**content(tmp_path), "profile": {"steps": [2, 3], "ranks": [1]}}
    told, (started,) = npus.run("tests.npu.runs:profiled", cp=2, content=recipe)
    assert told == []
    folder, activities = started
    assert activities == ["ProfilerActivity.CPU", "ProfilerActivity.NPU"]
    assert Path(folder).parent == tmp_path / "profile" and Path(folder).name.startswith("step_0000002_rank_1_")
    assert [path.parts[-2:] for path in (tmp_path / "profile").rglob("trace_view.json")] == [("ASCEND_PROFILER_OUTPUT", "trace_view.json")]


def test_the_command_is_the_same(
    simulated: dict[str, str], content: Callable[[Path], dict[str, Any]], on_the_cpu: Path, curve: Columns, tmp_path: Path
) -> None:
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(content(tmp_path / "run")))
    command = [sys.executable, "-m", "tests.npu.simulator.enter", "mindspeed_vita.cli.main", "train", str(tmp_path / "recipe.yaml")]
    done = subprocess.run(
        [*command, "train.steps=10", "checkpoint.save_every=5", "checkpoint.background=true"],
        cwd=ROOT,
        env={**os.environ, **simulated},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert "device: npu:0 (npu), collectives: cpu:gloo,npu:hccl" in done.stderr
    assert "attention of packs: npu\n" in done.stderr and "attention of tiles: npu\n" in done.stderr
    assert curve(tmp_path / "run") == pytest.approx(curve(on_the_cpu), **SAME)
