"""mindspeed_vita.cli.torchrun: a signal that comes before the processes of the run can answer it, and the time they have after one."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Optional

import pytest
from torch.distributed import run

from mindspeed_vita.cli import torchrun
from mindspeed_vita.engine.stopping import STATUS_FILE

ROOT = Path(__file__).parents[3]


@pytest.mark.distributed
def test_a_signal_ends_it_with_one_line_and_the_signals_status(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text("import pathlib, time; pathlib.Path('there').touch(); time.sleep(600)")
    command = [sys.executable, "-m", "mindspeed_vita.cli.torchrun", "--standalone", "--nproc_per_node", "1", "program.py"]
    started = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    until = time.monotonic() + 120
    while not (tmp_path / "there").exists():
        assert started.poll() is None and time.monotonic() < until
        time.sleep(0.05)
    started.send_signal(signal.SIGTERM)
    _, errors = started.communicate(timeout=120)
    assert started.returncode == 128 + signal.SIGTERM and "vita: torchrun was ended by SIGTERM" in errors
    assert "Traceback" not in errors


@pytest.mark.parametrize("told", [None, "", "60"])
def test_the_processes_have_as_long_as_launch_sh_gives_them_or_the_user(told: Optional[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """torchrun's own 30 s are less than a step of a large model and its save."""
    (wait,) = set(re.findall(r"TORCH_ELASTIC_SHUTDOWN_TIMEOUT:-(\d+)", (ROOT / "examples" / "launch.sh").read_text()))
    monkeypatch.setenv("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", told or "")
    if told is None:
        monkeypatch.delenv("TORCH_ELASTIC_SHUTDOWN_TIMEOUT")
    monkeypatch.setenv(STATUS_FILE, "")  # which main sets, for the processes
    monkeypatch.setattr(signal, "signal", lambda *arguments: None)
    seen: list[str] = []
    monkeypatch.setattr(run, "main", lambda: seen.append(os.environ.get("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", "30")))
    assert torchrun.main() == 0
    assert seen == [told or wait]
