"""Runs that are killed without a warning, or told to stop: the curve goes on as if nothing had happened."""

from __future__ import annotations

import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from mindspeed_vita.checkpoint.native import checkpoint as native
from mindspeed_vita.config import recipe_to_dict
from mindspeed_vita.engine.stopping import SAVED
from tests.pools import Pools
from tests.tiny_data import TinyData, read_metrics

ROOT = Path(__file__).resolve().parents[2]
RUN = "tests.distributed.layout_runs:run"


@pytest.mark.distributed
@pytest.mark.slow
def test_kill_9_at_random_moments_loses_nothing(pools: Pools, tiny: TinyData, tmp_path: Path) -> None:
    """Three kills of all processes, two of them in runs that write behind training; then the same command, and from a copy another
    layout, both as if nothing had happened."""
    steps = 40

    def recipe(directory: Path) -> dict[str, Any]:
        train = {"steps": steps, "lr": 2e-3, "min_lr": 2e-4}
        return recipe_to_dict(tiny.recipe(directory, train=train, checkpoint={"save_every": 3}))

    pools("installed").run(RUN, dp=2, content=recipe(tmp_path / "straight"))
    straight = read_metrics(tmp_path / "straight")
    directory, path = tmp_path / "killed", tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe(directory)))
    for number, moment in enumerate(sorted(random.Random(11).sample(range(2, steps - 4), 3))):
        kill_after(launch(path, background=number != 1), directory, moment)
    shutil.copytree(directory, tmp_path / "copy")
    last = launch(path)
    for process in last:
        _, error = process.communicate(timeout=300)
        assert process.returncode == 0, error
        assert ("vita: took over" in error) == (process is last[0]), "the killed run gave nothing back"
    assert read_metrics(directory) == straight
    pools("installed").run(RUN, tp=2, cp=2, content=recipe(tmp_path / "copy"))
    # a sum over ranks runs in another order than in the first part of the run
    assert read_metrics(tmp_path / "copy") == pytest.approx(straight, rel=1e-5)


@pytest.mark.distributed
@pytest.mark.slow
def test_ranks_stop_after_the_same_step_whenever_a_signal_reaches_them(tiny: TinyData, tmp_path: Path) -> None:
    path, directory = tmp_path / "recipe.yaml", tmp_path / "run"
    path.write_text(yaml.safe_dump(recipe_to_dict(tiny.recipe(directory, train={"steps": 5000}))))
    processes = launch(path)
    wait_for_step(processes, directory, 2)
    processes[1].send_signal(signal.SIGUSR1)  # the rank that does not lead
    time.sleep(0.05)  # about a step
    processes[0].send_signal(signal.SIGTERM)
    errors = [process.communicate(timeout=120)[1] for process in processes]
    assert [process.returncode for process in processes] == [SAVED] * 2, errors
    steps = len(read_metrics(directory))
    assert native.load_state(native.find(directory)).step == steps
    assert sum(error.count(f"after step {steps} of 5000; the same command continues from") for error in errors) == 1


def launch(recipe: Path, processes: int = 2, background: bool = False, words: Sequence[str] = ()) -> list[subprocess.Popen[str]]:
    """`vita train` with further words, in processes of its own, as torchrun would start them, but each to be ended by its id."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    told = [f"checkpoint.background={str(background).lower()}", *words]
    command = [sys.executable, "-m", "mindspeed_vita.cli.main", "train", str(recipe), *told]
    path = os.pathsep.join(filter(None, (os.environ.get("PYTHONPATH"), str(ROOT))))  # an overlay of packages goes first
    shared = {**os.environ, "PYTHONPATH": path, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(processes)}
    return [
        subprocess.Popen(
            command, env={**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for rank in range(processes)
    ]


def wait_for_step(processes: list[subprocess.Popen[str]], directory: Path, step: int) -> None:
    """Returns once a step is in the metrics."""
    deadline = time.monotonic() + 300
    path = directory / "metrics.jsonl"
    while (path.read_text().count("\n") if path.is_file() else 0) < step and time.monotonic() < deadline and processes[0].poll() is None:
        time.sleep(0.01)
    ended = [process.communicate()[1] for process in processes if process.poll() is not None]
    assert not ended, f"the run ended before it could be stopped: {ended}"


def kill_after(processes: list[subprocess.Popen[str]], directory: Path, step: int) -> None:
    """SIGKILL for every rank once a step is in the metrics."""
    wait_for_step(processes, directory, step)
    for process in processes:
        process.kill()
    for process in processes:
        process.communicate()
