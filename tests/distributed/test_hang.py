"""A rank that dies, stops or hangs: all others end, with one message and a status that tells which it was."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import yaml

from mindspeed_vita.config import recipe_to_dict
from mindspeed_vita.engine.lifeline import LOST
from mindspeed_vita.engine.watchdog import HUNG, STACKS
from tests.distributed.test_kill import launch, wait_for_step
from tests.tiny_data import TinyData

HANGS = """
import os
import time

from mindspeed_vita.engine.step import Stepper

run = Stepper.run

def gets_stuck(self, step, *rest):
    if step == 4 and os.environ["RANK"] == "1":
        time.sleep(600)
    return run(self, step, *rest)

Stepper.run = gets_stuck
"""

_LONGEST = 300.0
"""Seconds for a run that begins with its imports, on a machine that does other work as well."""


def start(tiny: TinyData, folder: Path, **sections: Any) -> list[Any]:
    path = folder / "recipe.yaml"
    recipe = recipe_to_dict(tiny.recipe(folder / "run", train={"steps": 5000}, checkpoint={"save_every": 3}, **sections))
    path.write_text(yaml.safe_dump({**recipe, "plugins": [path.stem for path in folder.glob("*.py")]}))
    return launch(path)


@pytest.mark.distributed
@pytest.mark.slow
@pytest.mark.parametrize("dead", [0, 1])
def test_a_killed_rank_ends_the_others_with_one_message(tiny: TinyData, tmp_path: Path, dead: int) -> None:
    processes = start(tiny, tmp_path)
    wait_for_step(processes, tmp_path / "run", 3)
    processes[dead].kill()
    processes[dead].communicate()
    other = processes[1 - dead]
    _, error = other.communicate(timeout=60)
    assert other.returncode == LOST, error
    told = [line for line in error.splitlines() if "vita: error" in line]
    assert len(told) == 1 and told[0].startswith(f"vita: error: rank {dead} (") and "ended without a word" in told[0], error
    assert "Traceback" not in error
    # a lock that the first rank could give back was given back
    assert (tmp_path / "run" / "run.lock").exists() == (dead == 0)


@pytest.mark.distributed
@pytest.mark.slow
def test_an_error_on_one_rank_ends_the_others_with_the_same_status_and_no_further_message(tiny: TinyData, tmp_path: Path) -> None:
    (tmp_path / "wrong_steps.py").write_text(HANGS.replace("time.sleep(600)", 'raise ValueError("this rank alone")'))
    processes = start(tiny, tmp_path)
    errors = [process.communicate(timeout=_LONGEST)[1] for process in processes]
    assert [process.returncode for process in processes] == [2, 2], errors
    told = [line for error in errors for line in error.splitlines() if "vita: error" in line or "Traceback" in line]
    assert told == ["vita: error: this rank alone"], errors


@pytest.mark.distributed
@pytest.mark.slow
def test_an_error_that_all_ranks_meet_is_one_message_also_when_the_first_rank_meets_it_first(tiny: TinyData, tmp_path: Path) -> None:
    """The first rank keeps the store in which the ranks settle who speaks."""
    both = HANGS.replace('and os.environ["RANK"] == "1"', "")
    (tmp_path / "failing_steps.py").write_text(
        both.replace("time.sleep(600)", 'time.sleep(0.3 * int(os.environ["RANK"]))\n        raise ValueError("of every rank")')
    )
    processes = start(tiny, tmp_path)
    errors = [process.communicate(timeout=_LONGEST)[1] for process in processes]
    assert [process.returncode for process in processes] == [2, 2], errors
    told = [line for error in errors for line in error.splitlines() if "vita: error" in line or "Traceback" in line]
    assert told == ["vita: error: of every rank"], errors


@pytest.mark.distributed
@pytest.mark.slow
def test_a_hang_writes_the_stacks_of_every_rank_into_one_file(tiny: TinyData, tmp_path: Path) -> None:
    (tmp_path / "stuck_steps.py").write_text(HANGS)
    processes = start(tiny, tmp_path, health={"hang_minutes": 0.1})
    errors = [process.communicate(timeout=_LONGEST)[1] for process in processes]
    assert [process.returncode for process in processes] == [HUNG, HUNG], errors
    stacks = (tmp_path / "run" / STACKS).read_text()
    assert "==== rank 0 of 2" in stacks and "==== rank 1 of 2" in stacks and "gets_stuck" in stacks
    told = [line for error in errors for line in error.splitlines() if "vita: error" in line]
    assert len(told) == 1 and "no step ended for 0.1 minutes (health.hang_minutes); the stacks of all processes are in" in told[0], errors
    assert "the same command continues from" in told[0] and "step_0000003" in told[0]


@pytest.mark.distributed
@pytest.mark.slow
def test_a_stopped_rank_is_named(tiny: TinyData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "less_patience.py").write_text("from mindspeed_vita.engine import watchdog\n\nwatchdog._ANSWERS = 3.0\n")
    processes = start(tiny, tmp_path, health={"hang_minutes": 0.1})
    wait_for_step(processes, tmp_path / "run", 3)
    processes[1].send_signal(signal.SIGSTOP)
    try:
        _, error = processes[0].communicate(timeout=_LONGEST)
    finally:
        os.kill(processes[1].pid, signal.SIGKILL)
        processes[1].communicate()
    assert processes[0].returncode == HUNG, error
    assert f"no answer from rank 1 (process {processes[1].pid} on " in error
    assert "==== rank 0 of 2" in (tmp_path / "run" / STACKS).read_text()
