"""Runs of real MindSpeed-LLM that hang, lose a process, or are told to stop: what the built-in engine does, by the same code."""

from __future__ import annotations

import signal
import subprocess
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from mindspeed_vita.config import Recipe
from mindspeed_vita.engine.lifeline import LOST
from mindspeed_vita.engine.stopping import SAVED
from mindspeed_vita.engine.watchdog import HUNG, STACKS
from mindspeed_vita.integration.mindspeed_llm.arguments import arguments_from_recipe
from tests.integration.mindspeed_run import MindSpeed
from tests.tiny_data import TinyData, read_metrics

HANGS = """
import os
import time

from mindspeed_vita.integration.mindspeed_llm.step import ForwardStep

finish_step = ForwardStep.finish_step

def gets_stuck(self, *losses, **numbers):
    if self.done == 4 and os.environ["RANK"] == "1":
        time.sleep(600)
    return finish_step(self, *losses, **numbers)

ForwardStep.finish_step = gets_stuck
"""
RANKS = 2


def test_a_hang_a_dead_rank_and_a_signal_end_a_run_as_in_the_built_in_engine(mindspeed: MindSpeed, weights: Path, tiny: TinyData) -> None:
    (mindspeed.folder / "stuck_steps.py").write_text(HANGS)
    directory = mindspeed.folder / "watched"

    def recipe(**sections: Any) -> Recipe:
        told = {"save_every": 3, "init_from": str(weights)}
        return tiny.recipe(directory, train={"steps": 5000}, checkpoint=told, **sections)

    def start(name: str, told: Recipe) -> list[subprocess.Popen[bytes]]:
        return mindspeed.start(arguments_from_recipe(told), RANKS, name)

    def printed(name: str) -> list[str]:
        return [(mindspeed.folder / f"{name}.{rank}.log").read_text(errors="replace") for rank in range(RANKS)]

    def wait_for_step(processes: list[subprocess.Popen[bytes]], step: int, name: str) -> None:
        deadline, path = time.monotonic() + 300, directory / "metrics.jsonl"
        while (path.read_text().count("\n") if path.is_file() else 0) < step and time.monotonic() < deadline:
            assert all(process.poll() is None for process in processes), printed(name)
            time.sleep(0.02)

    processes = start("hangs", replace(recipe(health={"hang_minutes": 0.2}), plugins=("stuck_steps",)))
    assert [process.wait(timeout=240) for process in processes] == [HUNG] * RANKS, printed("hangs")
    stacks = (directory / STACKS).read_text()
    assert "==== rank 0 of 2" in stacks and "==== rank 1 of 2" in stacks and "gets_stuck" in stacks
    told = [line for text in printed("hangs") for line in text.splitlines() if "vita: error" in line]
    assert len(told) == 1 and "no step ended for 0.2 minutes (health.hang_minutes)" in told[0], told
    assert f"the same command continues from {directory / 'iter_0000003'}" in told[0]

    processes = start("dies", recipe())
    wait_for_step(processes, 5, "dies")
    processes[1].kill()
    assert processes[0].wait(timeout=60) == LOST, printed("dies")
    processes[1].wait()
    error = printed("dies")[0]
    told = [line for line in error.splitlines() if "vita: error" in line]
    assert len(told) == 1 and told[0].startswith("vita: error: rank 1 (") and "ended without a word" in told[0], error
    assert "Traceback" not in error

    processes = start("stops", recipe())
    wait_for_step(processes, 8, "stops")
    processes[1].send_signal(signal.SIGUSR1)
    assert [process.wait(timeout=120) for process in processes] == [SAVED] * RANKS, printed("stops")
    step = len(read_metrics(directory))
    assert int((directory / "latest_checkpointed_iteration.txt").read_text()) == step, "the step was saved"
    line = f"vita: stopped by SIGUSR1; the same command continues from {directory / f'iter_{step:07d}'}"
    assert [text.count(line) for text in printed("stops")] == [1, 0]
