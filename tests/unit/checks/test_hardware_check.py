"""scripts/gpu_check.py and scripts/npu_check.py on a machine without their device."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mindspeed_vita.checks.hardware_check.main import main

ROOT = Path(__file__).resolve().parents[3]


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_without_the_device_one_message_says_so(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.delenv("DEVICE", raising=False)
    with pytest.raises(SystemExit) as ended:
        main("cuda", [])
    assert ended.value.code == 2
    assert "this script needs one cuda, unless the environment variable DEVICE names another device" in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_the_script_says_it_without_a_traceback_and_without_foreign_warnings() -> None:
    environment = {name: value for name, value in os.environ.items() if name != "DEVICE"}
    done = subprocess.run([sys.executable, "scripts/gpu_check.py"], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2 and done.stderr.startswith("usage: ") and "Traceback" not in done.stderr, done.stderr
