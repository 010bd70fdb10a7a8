"""Liger's kernels behind the tokenwise calls: who is refused, and rotation and row losses under Triton's interpreter."""

from __future__ import annotations

import importlib.metadata
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from mindspeed_vita.ops.tokenwise import liger

ROOT = Path(__file__).resolve().parents[3]
OVERLAY = ROOT / ".venv" / "overlays" / "triton-3.9.0"


@pytest.mark.skipif(not (OVERLAY / "triton").is_dir(), reason="no overlay of Triton; bash scripts/triton_overlay.sh makes it")
def test_rotation_and_row_losses_under_the_interpreter():
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{OVERLAY}", "TRITON_INTERPRET": "1"}
    command = [sys.executable, "-m", "tests.unit.ops.liger_process"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert set(report["refused"].values()) == {None}
    # worst seen: 4e-7 in fp32, one rounding in bf16, 2e-6 of log-sum-exps around 20
    assert all(error < 2e-6 for errors in report["fp32"].values() for error in errors.values())
    assert all(error < 2e-2 for error in report["bf16"].values())
    assert all(error < 1e-5 for errors in report["losses"].values() for error in errors.values())


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch):
    """A liger-kernel of version 0.8.5 whose functions take what is passed."""
    package, ops = ModuleType("liger_kernel"), ModuleType("liger_kernel.ops")
    for name, arguments in liger._PASSED.items():
        exec(f"def {name}({', '.join(arguments)}): ...", ops.__dict__)
    monkeypatch.setitem(sys.modules, "liger_kernel", package)
    monkeypatch.setitem(sys.modules, "liger_kernel.ops", ops)
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "0.8.5")
    liger._refuse_installation.cache_clear()
    yield ops
    liger._refuse_installation.cache_clear()


def test_what_liger_cannot_serve_is_refused_with_the_reason(installed, monkeypatch):
    row = torch.empty(0, 4, 15)
    assert liger.refuse("rms_norm", row) is None
    assert liger.refuse("apply_rotary", row) == "takes even widths of a head, not 15"
    assert liger.refuse("swiglu", row.double()) == "takes bf16, fp16 and fp32, not torch.float64"
    assert liger.refuse("swiglu", torch.empty(0, 65537)) == "takes rows of up to 65536 numbers, not 65537"
    del installed.rope_backward
    liger._refuse_installation.cache_clear()
    assert liger.refuse("rms_norm", row) == "liger-kernel 0.8.5 has another interface (no rope_backward); install another release"
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "0.5.2")
    liger._refuse_installation.cache_clear()
    assert liger.refuse("rms_norm", row) == "liger-kernel 0.5.2 is too old; install 0.8 or newer"


def test_an_old_gpu_is_refused(installed, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla T4")
    assert liger._refuse_device(torch.device("cuda", 0)) == "needs compute capability 8.0 or newer, Tesla T4 has 7.5"
