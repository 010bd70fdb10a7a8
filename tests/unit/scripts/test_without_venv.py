"""Without the project's .venv, scripts and `make` say in one line what to run."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
SCRIPTS = sorted(
    path.relative_to(ROOT)
    for path in [ROOT / "pretrain_vita.py", *(ROOT / "scripts").rglob("*.py"), *(ROOT / "examples").rglob("*.py")]
    if path.name not in ("augment.py", "subjects.py", "report.py", "hosts.py")  # no scripts; the last two need a run or hosts first
)


@pytest.mark.parametrize("script", SCRIPTS, ids=str)
def test_a_script_names_the_environment(script):
    # -S: without the packages of the environment
    command = [sys.executable, "-S", "-E", str(script), "--check"]
    done = subprocess.run(command, cwd=ROOT / "docs" / "..", capture_output=True, text=True, timeout=60)
    if done.returncode == 0:  # a script that needs no package
        assert not done.stderr
        return
    assert done.returncode == 1 and done.stderr.count("\n") == 1, done.stderr
    assert f"is missing in {sys.executable}; run: source .venv/bin/activate (scripts/setup_env.sh makes it)" in done.stderr


def test_the_report_of_the_quickstart_names_it_too(tmp_path):
    code = f"import sys; sys.path.insert(0, {str(ROOT / 'examples' / 'tiny')!r}); import report; report.loss_picture([], None)"
    done = subprocess.run([sys.executable, "-S", "-E", "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and done.stderr.count("\n") == 1 and "source .venv/bin/activate" in done.stderr


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_make_says_what_makes_the_environment(tmp_path):
    shutil.copy(ROOT / "Makefile", tmp_path)
    for target in ("check", "lint", "unit"):
        done = subprocess.run(["make", target], cwd=tmp_path, capture_output=True, text=True, timeout=60)
        first = done.stderr.splitlines()[0]
        assert done.returncode == 2 and first == ".venv/bin/python is not there; run: bash scripts/setup_env.sh   (or set PYTHON)"
    done = subprocess.run(["make", "-n", "lint", f"PYTHON={sys.executable}"], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and "-m ruff check ." in done.stdout


def test_a_stage_script_names_it_too(tmp_path):
    """launch.sh takes python3 where there is no .venv; one without torch is refused before torchrun is looked for."""
    for name in ("examples/launch.sh", "examples/long_vita_14b/stage1.sh"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    bare = tmp_path / "bin" / "python3"
    bare.parent.mkdir()
    bare.write_text(f'#!/bin/sh\nexec "{sys.executable}" -S -E "$@"\n')
    bare.chmod(0o755)
    variables = {name: str(tmp_path) for name in ("DATA_ROOT", "TOKENIZER", "BASE_WEIGHTS", "OUTPUT_ROOT")}
    environment = {"PATH": f"{bare.parent}:{os.environ['PATH']}", "DEVICE": "cpu", **variables}
    done = subprocess.run(
        ["bash", str(tmp_path / "examples/long_vita_14b/stage1.sh")], env=environment, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    assert "python3 has no torch; run: bash scripts/setup_env.sh (it makes .venv), or name another Python in PYTHON" in done.stderr
