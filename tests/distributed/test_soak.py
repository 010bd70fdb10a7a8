"""Each kind of fault once, in the starts of a tiny run of two processes; scripts/soak_train.sh does 1,000."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.train_faults import KINDS

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.distributed
@pytest.mark.slow
def test_no_fault_loses_a_saved_step_damages_a_checkpoint_or_changes_the_curve() -> None:
    command = [sys.executable, "-m", "tests.soak_train", str(len(KINDS)), "inf", "5"]
    path = os.pathsep.join(filter(None, (os.environ.get("PYTHONPATH"), str(ROOT))))
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "PASS: the soak of training" in done.stdout and all(f"\n{kind} " in done.stdout for kind in KINDS), done.stdout
