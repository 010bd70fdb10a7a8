"""The plugin against the real vLLM: its registry, its processing and its interfaces. No engine is started, and no kernel of vLLM runs.

scripts/vllm_overlay.sh makes the overlay (about 1 GB), which CI does not have.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
OVERLAY = ROOT / ".venv" / "overlays" / "vllm-0.33.0"
INSIDE = "VITA_INSIDE_VLLM"


@pytest.mark.skipif(INSIDE in os.environ, reason="this process is the one with vLLM")
@pytest.mark.skipif(not (OVERLAY / "vllm").is_dir(), reason="no overlay of vLLM; bash scripts/vllm_overlay.sh makes it")
def test_the_plugin_fits_the_real_vllm() -> None:
    environment = {**os.environ, "PYTHONPATH": str(OVERLAY), INSIDE: "1", "VLLM_NO_USAGE_STATS": "1", "VLLM_LOGGING_LEVEL": "WARNING"}
    command = [sys.executable, "-m", "pytest", "-q", "--tb=short", "-p", "no:cacheprovider", "-n0", "tests/vllm_plugin/inside.py"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert " passed" in done.stdout and "skipped" not in done.stdout
