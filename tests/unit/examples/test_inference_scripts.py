"""The scripts of examples/inference say the command that they start, on every device, and what is missing."""

from __future__ import annotations

import os
import shlex
import subprocess
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[3] / "examples" / "inference"
LAYOUTS = {"one_device": (1, 1), "tp8": (8, 1), "cp8": (1, 8), "tp2_cp4": (2, 4)}


def start(name: str, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": os.environ["PATH"], "PYTHON": "true", "DRY_RUN": "1", **variables}
    return subprocess.run(["bash", str(FOLDER / f"{name}.sh"), *arguments], env=environment, capture_output=True, text=True, timeout=60)


def test_every_script_is_tested() -> None:
    assert {path.stem for path in FOLDER.glob("*.sh")} == {*LAYOUTS, "launch"}
    assert all(len((FOLDER / f"{name}.sh").read_text().splitlines()) <= 25 for name in LAYOUTS)


@pytest.mark.parametrize("device", ["npu", "cuda", "cpu"])
@pytest.mark.parametrize("name", LAYOUTS)
def test_it_prints_its_command(name: str, device: str, tmp_path: Path) -> None:
    given = {"CHECKPOINT": str(tmp_path), "PROMPT": "What happens?", "VIDEO": "a film.mp4", "DEVICE": device}
    done = start(name, "--max-new-tokens", "7", **given)
    assert done.returncode == 0, done.stderr
    words = shlex.split(done.stdout)
    tp, cp = LAYOUTS[name]
    wanted = ["generate", str(tmp_path), "--tp", str(tp), "--cp", str(cp), "--prompt", "What happens?", "--video", "a film.mp4"]
    assert words[words.index("generate") :] == [*wanted, "--max-new-tokens", "7"]
    started = [words[words.index("--nproc_per_node") + 1]] if "torch.distributed.run" in words else []
    assert started == ([str(tp * cp)] if tp * cp > 1 else []), "one process needs no launcher"
    assert f"DEVICE={device}" in words
    assert any(word.startswith("HCCL_EXEC_TIMEOUT=") for word in words) == (device == "npu")


def test_what_is_missing_is_said(tmp_path: Path) -> None:
    done = start("cp8", DEVICE="cpu")
    assert done.returncode == 2 and "CHECKPOINT: a native run" in done.stderr and "PROMPT: the question" in done.stderr
    done = start("cp8", DEVICE="cpu", CHECKPOINT=str(tmp_path / "gone"), PROMPT="x")
    assert done.returncode == 2 and "gone: no such folder" in done.stderr
    done = start("cp8", DEVICE="tpu", CHECKPOINT=str(tmp_path), PROMPT="x")
    assert done.returncode == 2 and "DEVICE=tpu; expected auto, npu, cuda or cpu" in done.stderr
