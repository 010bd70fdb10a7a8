"""A process that runs no Python any more is ended with its stacks; one that was suspended goes on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch.distributed as dist

from mindspeed_vita.config import recipe_from_dict
from mindspeed_vita.engine import guard, watchdog
from mindspeed_vita.engine.lifeline import Lifeline

ROOT = Path(__file__).resolve().parents[3]
WORKS = """
import ctypes
import sys
import time

from mindspeed_vita.engine import watchdog

watchdog._WITHOUT_PYTHON = 5.0
watched = watchdog.Watchdog(5.0, lambda: print("hung", flush=True))
print("works", flush=True)

def holds_the_interpreter():
    ctypes.PyDLL(None).sleep(60)

if sys.argv[1] == "holds":
    holds_the_interpreter()
for _ in range(20):
    time.sleep(0.1)
    watched.beat()
watched.close()
print("done", flush=True)
"""


def start(what: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))}
    words = [sys.executable, "-c", WORKS, what]
    process = subprocess.Popen(words, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "works\n"
    return process


@pytest.mark.skipif(sys.platform != "linux", reason="no /proc here")
def test_a_process_that_was_suspended_for_long_goes_on_and_one_without_python_is_ended_with_its_stacks() -> None:
    suspended, holds = start("works"), start("holds")
    time.sleep(0.3)
    suspended.send_signal(signal.SIGSTOP)
    told = holds.communicate(timeout=60)[1]
    assert holds.returncode == -signal.SIGABRT and "holds_the_interpreter" in told, told
    time.sleep(6)  # longer than the limit and what comes on top, together with the wait for the other
    suspended.send_signal(signal.SIGCONT)
    out, error = suspended.communicate(timeout=60)
    assert (suspended.returncode, out) == (0, "done\n"), error


def test_a_guard_ends_with_its_process_and_when_it_is_closed() -> None:
    made = guard.Guard(60.0)
    made.beat()
    made.close()
    assert made._process.poll() is not None
    code = "import os; from mindspeed_vita.engine.guard import Guard; print(Guard(60.0)._process.pid, flush=True); os._exit(3)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert done.returncode == 3
    deadline = time.monotonic() + 20
    while Path(f"/proc/{done.stdout.strip()}").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not Path(f"/proc/{done.stdout.strip()}").exists(), "it has nothing to guard any more"


@pytest.mark.parametrize("rank", [1, 3, 4])
def test_a_first_host_that_does_not_answer_is_told_by_the_next_one(
    rank: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Five ranks, three of them on the first host. Its second rank speaks where the first one alone hangs."""
    left: list[tuple[int, str]] = []
    monkeypatch.setattr(watchdog, "time", SimpleNamespace(sleep=lambda seconds: None, monotonic=time.monotonic))
    monkeypatch.setattr(dist, "get_rank", lambda: rank)
    monkeypatch.setattr(dist, "get_world_size", lambda: 5)
    recipe = recipe_from_dict({"model": {"preset": "tiny"}, "checkpoint": {"directory": str(tmp_path)}})
    hang = watchdog._Hang(recipe, lambda *end: left.append(end), lambda folder: None)  # type: ignore[arg-type]
    line = Lifeline.__new__(Lifeline)
    line.rank, line._first_host, line._names, line._peers = rank, "3", {}, {}
    hang.lifeline = line
    hang.hung()
    ((status, told),) = left
    assert status == watchdog.HUNG and ("rank 0 does not answer" in told) == (rank in (1, 3))
