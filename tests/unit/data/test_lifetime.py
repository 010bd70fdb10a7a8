"""Helper processes do not outlive the process they work for; a pool of them that breaks names the file."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from types import SimpleNamespace

import pytest

from mindspeed_vita.data.crew import Crew

PARENT = """
import os, subprocess, sys, time
code = '''
import sys, time
from mindspeed_vita.data.lifetime import live_no_longer_than
live_no_longer_than(int(sys.argv[1]))
print("tied", flush=True)
time.sleep(300)
'''
child = subprocess.Popen([sys.executable, "-c", code, str(os.getpid())], stdout=subprocess.PIPE, text=True)
assert child.stdout.readline() == "tied\\n"
print(child.pid, flush=True)
time.sleep(300)
"""


def gone(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rsplit(")", 1)[1].split()[0] == "Z"
    except FileNotFoundError:
        return True


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux's signal at the parent's death")
def test_a_helper_ends_with_a_parent_that_is_killed() -> None:
    with subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        assert not gone(child)
        parent.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 60
    while not gone(child) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert gone(child)


def test_a_helper_of_a_parent_that_is_gone_already_ends_at_once() -> None:
    code = "from mindspeed_vita.data.lifetime import live_no_longer_than; live_no_longer_than(1 << 30); print('lives on')"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (run.returncode, run.stdout) == (1, "")


def test_a_pool_that_breaks_names_the_file() -> None:
    broken: Future = Future()
    broken.set_exception(BrokenProcessPool("a process died"))
    killed: list[str] = []
    process = SimpleNamespace(terminate=lambda: killed.append("terminated"))
    with pytest.raises(ValueError, match=r"photos\.jsonl: a process that measured its rows died .* data\.index_processes=1"):
        with Crew(settings=None, processes=2) as crew:
            crew._pool = SimpleNamespace(submit=lambda *_: broken, shutdown=lambda **_: None, _processes={os.getpid(): process})
            list(crew.together(len, [[]], lambda _: "photos.jsonl"))
    assert killed == ["terminated"], "what is under way is not waited for"
