"""scripts/newest.sh and scripts/test_pythons.sh with a fake pip and a fake scripts/test.sh: what they print, and when locks are renewed."""

from __future__ import annotations

import os
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fake_ascend import make_program

ROOT = Path(__file__).resolve().parents[3]

# `-m venv DIR` makes an environment of itself; pip's report holds two packages; every other call goes to the real Python.
FAKE_PYTHON = f"""case "$*" in
    "-m venv "*) mkdir -p "$3/bin" && cat "$0" >"$3/bin/python" && chmod 755 "$3/bin/python" ;;
    *"--upgrade pip"*) ;;
    *--no-deps*) while [ "$1" != --report ]; do shift; done
        echo '{{"install": [{{"metadata": {{"name": "torch", "version": "9.0"}}, "download_info": {{"url": ""}}}}]}}' >"$2" ;;
    *--report*) while [ "$1" != --report ]; do shift; done
        echo '{{"install": [{{"metadata": {{"name": "torch", "version": "2.13.1"}}, "download_info": {{"url": ""}}}},' >"$2"
        echo '{{"metadata": {{"name": "numpy", "version": "2.9"}}, "download_info": {{"url": ""}}}}]}}' >>"$2" ;;
    *version_info*) echo 3.11 ;;
    *python_version*) echo 3.11.9 ;;
    *) exec {sys.executable} "$@" ;;
esac"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    root = tmp_path / "checkout"
    (root / "scripts" / "locks").mkdir(parents=True)
    for name in ("newest.sh", "test_pythons.sh", "locks/report.py"):
        shutil.copy(ROOT / "scripts" / name, root / "scripts" / name)
    (root / "scripts" / "locks" / "py311.txt").write_text("# old\nnumpy==2.4.6\ntorch==2.13.1\n")
    (root / "requirements.txt").write_text("torch>=2.7,<2.14  # a comment\nnumpy>=1.26\n")
    make_program(tmp_path / "python", FAKE_PYTHON)
    return root


def run(checkout: Path, script: str, *arguments: str, tests: str = "exit 0") -> subprocess.CompletedProcess[str]:
    (checkout / "scripts" / "test.sh").write_text(f"echo $VITA_VENV $VITA_LOCK; echo '3 passed in 1.00s'\n{tests}\n")
    (checkout / "scripts" / "setup_env.sh").write_text("exit 0\n")
    environment = {**os.environ, "VITA_PYTHONS": str(checkout.parent / "python"), "VITA_TORCH": "", "TORCH_INDEX": ""}
    command = ["bash", str(checkout / "scripts" / script), *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)


def test_a_dry_run_prints_what_is_newer_and_what_lies_outside_the_ranges(checkout):
    done = run(checkout, "newest.sh", "--dry-run")
    assert done.returncode == 0, done.stderr
    assert "  - numpy==2.4.6\n" in done.stdout and "  + numpy==2.9\n" in done.stdout and "2.13.1" not in done.stdout
    assert "  outside the range torch>=2.7,<2.14: torch 9.0\n" in done.stdout
    assert "numpy==2.4.6" in (checkout / "scripts" / "locks" / "py311.txt").read_text()


def test_the_lock_is_renewed_when_the_tests_pass_and_not_before(checkout):
    lock = checkout / "scripts" / "locks" / "py311.txt"
    before = lock.read_text()
    done = run(checkout, "newest.sh", tests="echo 'FAILED tests/a.py::test_b'; exit 1")
    assert done.returncode == 1 and "FAILED tests/a.py::test_b" in done.stdout and "broken: Python 3.11" in done.stdout
    assert lock.read_text() == before
    done = run(checkout, "newest.sh")
    assert done.returncode == 0 and "PASS: renewed scripts/locks/py311" in done.stdout
    assert lock.read_text().splitlines()[1:] == ["numpy==2.9", "torch==2.13.1"]
    log = (checkout / ".venvs" / "newest" / "py311.txt.log").read_text()
    assert f"{checkout}/.venvs/newest-py311 {checkout}/.venvs/newest/py311.txt\n" in log


@pytest.mark.parametrize(("tests", "status", "word"), [("exit 0", 0, "| passed |"), ("exit 1", 1, "| FAILED, see .venvs/py311.log |")])
def test_the_table_of_pythons(checkout, tests, status, word):
    done = run(checkout, "test_pythons.sh", tests=tests)
    row = next(line for line in done.stdout.splitlines() if line.startswith("| 3.11.9 |"))
    assert done.returncode == status and "| 3 passed |" in row and row.endswith(word), done.stdout + done.stderr


def test_the_report_can_be_imported():
    report = runpy.run_path(str(ROOT / "scripts" / "locks" / "report.py"), run_name="report")
    content = {"install": [{"metadata": {"name": "a", "version": "1"}, "download_info": {"url": "file:///a.whl"}}]}
    assert report["size"](content) == "1 packages, 0 MB to download at most"
