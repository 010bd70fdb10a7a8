"""The processes of traces end with the process that asked for them."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

PLUGIN = """
import os, pathlib, time
pathlib.Path(os.environ["STARTED"]).write_text(str(os.getpid()))
time.sleep(300)
"""
PARENT = """
from mindspeed_vita.config.recipe import Recipe
from mindspeed_vita.planner.children import Job, trace_all
if __name__ == "__main__":
    trace_all([Job(recipe=Recipe(plugins=("waits_for_ever",)), world=1, rank=0)], 1)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux's signal at the parent's death")
def test_a_trace_ends_with_a_parent_that_is_killed(tmp_path: Path) -> None:
    (tmp_path / "waits_for_ever.py").write_text(PLUGIN)
    (tmp_path / "parent.py").write_text(PARENT)
    started = tmp_path / "started"
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "STARTED": str(started)}
    with subprocess.Popen([sys.executable, str(tmp_path / "parent.py")], env=environment) as parent:
        while parent.poll() is None and not (started.exists() and started.read_text()):
            time.sleep(0.05)
        parent.kill()
    child, deadline = Path("/proc") / started.read_text(), time.monotonic() + 60
    while child.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not child.exists()
