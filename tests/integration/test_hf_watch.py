"""Runs of --engine hf that hang, lose a process, or are told to stop: what the built-in engine does, by the same code."""

from __future__ import annotations

import importlib.util
import json
import signal
from pathlib import Path

import pytest
import yaml

from mindspeed_vita.checkpoint.native import checkpoint as native
from mindspeed_vita.config import recipe_to_dict
from mindspeed_vita.engine.lifeline import LOST
from mindspeed_vita.engine.session import distributed
from mindspeed_vita.engine.stopping import SAVED
from mindspeed_vita.engine.watchdog import HUNG, STACKS
from mindspeed_vita.parallel.build import build_model
from mindspeed_vita.platform import get_platform
from tests.distributed.test_kill import launch, wait_for_step
from tests.tiny_data import TinyData, read_metrics

HANGS = """
import os
import time

from mindspeed_vita.integration.hf_trainer.trainer import PackTrainer

finish_step = PackTrainer.finish_step

def gets_stuck(self):
    if self.state.global_step == 4 and os.environ["RANK"] == "1":
        time.sleep(600)
    return finish_step(self)

PackTrainer.finish_step = gets_stuck
"""


@pytest.mark.distributed
@pytest.mark.slow
def test_a_hang_a_dead_rank_and_a_signal_end_a_run_as_in_the_built_in_engine(tiny: TinyData, tmp_path: Path) -> None:
    if importlib.util.find_spec("accelerate") is None:
        pytest.skip("the package accelerate is not installed; scripts/test.sh installs it")
    (tmp_path / "stuck_steps.py").write_text(HANGS)
    recipe = tiny.recipe(
        tmp_path / "run",
        train={"steps": 5000},
        checkpoint={"save_every": 3, "init_from": str(tmp_path / "init")},
        health={"hang_minutes": 0.1},
    )
    with distributed(recipe, get_platform()) as layout:
        native.save_weights(tmp_path / "init", build_model(recipe, layout), recipe)
    path, directory = tmp_path / "recipe.yaml", tmp_path / "run"
    path.write_text(yaml.safe_dump({**recipe_to_dict(recipe), "plugins": ["stuck_steps"]}))
    processes = launch(path, words=["--engine", "hf"])
    errors = [process.communicate(timeout=240)[1] for process in processes]
    assert [process.returncode for process in processes] == [HUNG, HUNG], errors
    stacks = (directory / STACKS).read_text()
    assert "==== rank 0 of 2" in stacks and "==== rank 1 of 2" in stacks and "gets_stuck" in stacks
    told = [line for error in errors for line in error.splitlines() if "vita: error" in line]
    assert len(told) == 1 and "no step ended for 0.1 minutes (health.hang_minutes)" in told[0], errors
    assert f"the same command continues from {directory / 'checkpoint-3'}" in told[0]

    path.write_text(yaml.safe_dump(recipe_to_dict(recipe)))
    processes = launch(path, words=["--engine", "hf", "health.hang_minutes=1"])
    wait_for_step(processes, directory, 5)
    processes[1].kill()
    processes[1].communicate()
    error = processes[0].communicate(timeout=60)[1]
    assert processes[0].returncode == LOST, error
    told = [line for line in error.splitlines() if "vita: error" in line]
    assert len(told) == 1 and told[0].startswith("vita: error: rank 1 (") and "ended without a word" in told[0], error
    assert "Traceback" not in error

    processes = launch(path, words=["--engine", "hf", "health.hang_minutes=1"])
    wait_for_step(processes, directory, 8)
    processes[1].send_signal(signal.SIGUSR1)
    errors = [process.communicate(timeout=120)[1] for process in processes]
    assert [process.returncode for process in processes] == [SAVED] * 2, errors
    newest = directory / f"checkpoint-{len(read_metrics(directory))}"
    assert json.loads((newest / "state.json").read_text())["step"] == len(read_metrics(directory)), "the step was saved"
