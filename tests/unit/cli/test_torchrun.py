"""mindspeed_vita.cli.torchrun: a signal that comes before the processes of the run can answer it."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest


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
