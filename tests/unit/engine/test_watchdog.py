"""A process that runs no Python any more is ended with its stacks; one that was suspended goes on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mindspeed_vita.engine import guard

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
