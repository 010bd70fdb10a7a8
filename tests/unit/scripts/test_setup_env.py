"""scripts/setup_env.sh: what it refuses, what it names, and that a finished environment is used again. A fake Python stands in for pip."""

from __future__ import annotations

import json
import os
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement

from mindspeed_vita.checks.doctor.matrix import PYTHON
from tests.fake_ascend import make_program

ROOT = Path(__file__).resolve().parents[3]
LOCKS = ROOT / "scripts" / "locks"
TOOLS = ("awk", "bash", "cat", "chmod", "cksum", "df", "dirname", "grep", "mkdir", "rm", "sed", "sh")

# Answers what the set-up asks of an interpreter, and notes every call of pip. `-m venv DIR` copies itself there.
FAKE_PYTHON = """[ "$1" = -c ] || echo "$@" >>"$CALLS"
case "$*" in
    *version_info*) echo "${FAKE_VERSION:-3.11}" ;;
    *ensurepip*) echo "$FAKE_MISSING" ;;
    *realpath*) echo "$0" ;;
    "-m venv "*) mkdir -p "$3/bin" && cat "$0" >"$3/bin/python" && chmod 755 "$3/bin/python" ;;
    *--dry-run*+cpu*) exit "${FAKE_CPU_BUILD:-1}" ;;
    *report.py*) echo "3 packages, 200 MB to download at most" ;;
esac
"""


class Machine:
    """A copy of the scripts in a folder, a PATH with nothing but what they need, and one fake Python."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "a checkout"
        (self.root / "scripts").mkdir(parents=True)
        for name in ("scripts/setup_env.sh", "requirements.txt", "setup.py"):
            shutil.copy(ROOT / name, self.root / name)
        shutil.copytree(LOCKS, self.root / "scripts" / "locks")
        self.bin, self.calls = folder / "bin", folder / "calls"
        self.bin.mkdir()
        for tool in TOOLS:
            (self.bin / tool).symlink_to(shutil.which(tool) or tool)
        make_program(self.bin / "python3.11", FAKE_PYTHON)

    def setup(self, **variables: str) -> subprocess.CompletedProcess[str]:
        kept = {"PATH": str(self.bin), "CALLS": str(self.calls), "HOME": str(self.root)}
        self.calls.write_text("")
        command = ["bash", str(self.root / "scripts" / "setup_env.sh")]
        return subprocess.run(command, env={**kept, **variables}, capture_output=True, text=True, timeout=60)

    def pip(self) -> list[str]:
        """The installations that were asked for."""
        calls = self.calls.read_text().splitlines()
        return [call for call in calls if "pip" in call and " install " in call and "--dry-run" not in call]


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_versions_come_from_the_lock_of_the_python_and_no_compiler_is_asked_for(machine):
    done = machine.setup()
    assert done.returncode == 0, done.stderr
    constraints = (machine.root / ".venv" / "constraints.txt").read_text().splitlines()
    assert sorted(constraints) == sorted((LOCKS / "py311.txt").read_text().splitlines())
    torch, tools, rest = machine.pip()
    assert "torch==2." in torch and "setuptools" in tools and "[dev,quickstart]" in rest
    assert all(f"--constraint {machine.root}/.venv/constraints.txt" in call for call in machine.pip())
    assert done.stdout.count("200 MB to download at most") == 2


def test_a_second_run_starts_no_program(machine):
    assert machine.setup().returncode == 0
    again = machine.setup()
    assert (again.returncode, again.stdout, machine.calls.read_text()) == (0, "", "")


@pytest.mark.parametrize(("answer", "build"), [("0", "+cpu"), ("1", "")])
def test_the_cpu_build_is_taken_where_the_index_has_one(machine, answer, build):
    machine.setup(FAKE_CPU_BUILD=answer, TORCH_INDEX="file:///wheels")
    version = re.search(r"^torch==(.*)$", (LOCKS / "py311.txt").read_text(), re.MULTILINE)[1]
    assert machine.pip()[0].endswith(f"--index-url file:///wheels torch=={version}{build}")


def test_a_gpu_or_a_named_build_of_torch_is_left_alone(machine):
    make_program(machine.bin / "nvidia-smi", "echo GPU 0")
    machine.setup(FAKE_CPU_BUILD="0")
    assert not machine.pip()[0].endswith("+cpu")
    machine.setup(FAKE_CPU_BUILD="0", VITA_TORCH="2.9.1+cu128")
    assert machine.pip()[0].endswith("torch==2.9.1+cu128")
    constraints = (machine.root / ".venv" / "constraints.txt").read_text()
    assert re.findall("^torch==.*$", constraints, re.MULTILINE) == ["torch==2.9.1+cu128"]


@pytest.mark.parametrize(
    ("named", "text"),
    [
        ("/nowhere/python3.12", "VITA_BASE_PYTHON=/nowhere/python3.12 does not run: .*No such file"),
        ("broken", "VITA_BASE_PYTHON=broken does not run: pyenv: version not installed"),
        ("old", r"VITA_BASE_PYTHON=old is Python 3\.9; expected 3\.10 to 3\.13"),
    ],
)
def test_the_named_python_binds(machine, named, text):
    make_program(machine.bin / "broken", "echo pyenv: version not installed >&2; exit 127")
    make_program(machine.bin / "old", "echo 3.9")
    done = machine.setup(VITA_BASE_PYTHON=named)
    assert done.returncode == 1 and re.search(text, done.stderr), done.stderr
    assert not machine.pip() and not (machine.root / ".venv").exists()


def test_everything_missing_is_named_at_once(machine):
    (machine.bin / "df").unlink()
    make_program(machine.bin / "df", "echo header; echo disk 9 9 1024 9% /")
    done = machine.setup(FAKE_MISSING="ensurepip ssl")
    assert done.returncode == 1
    assert "lacks the modules ensurepip ssl" in done.stderr and "has 1 MB free" in done.stderr and "nothing was changed" in done.stderr
    (machine.bin / "python3.11").unlink()
    done = machine.setup()
    assert "no Python from 3.10 to 3.13 runs" in done.stderr and "has 1 MB free" in done.stderr


def test_another_python_makes_the_environment_anew_and_none_keeps_it(machine):
    assert machine.setup().returncode == 0
    make_program(machine.bin / "python3.12", FAKE_PYTHON.replace("${FAKE_VERSION:-3.11}", "3.12"))
    done = machine.setup(VITA_BASE_PYTHON="python3.12")
    assert "python3.12 (Python 3.12)" in done.stdout and "py312.txt" in done.stdout
    assert machine.setup().stdout == ""
    (machine.root / "requirements.txt").write_text("# changed\n")
    done = machine.setup()
    assert "py312.txt" in done.stdout and "making" not in done.stdout


def _requirements() -> list[str]:
    """What setup.py asks for: run time and the two extras of the set-up."""
    import setuptools

    asked: dict[str, Any] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(setuptools, "setup", lambda **arguments: asked.update(arguments))
        runpy.run_path(str(ROOT / "setup.py"))
    return [*asked["install_requires"], *asked["extras_require"]["dev"], *asked["extras_require"]["quickstart"]]


@pytest.mark.parametrize("python", PYTHON)
def test_every_python_has_a_lock_inside_the_tested_ranges(python):
    lines = (LOCKS / f"py{python.replace('.', '')}.txt").read_text().splitlines()[1:]
    assert all(re.fullmatch(r"[a-z0-9-]+==[\w.]+", line) for line in lines)
    locked = dict(line.split("==") for line in lines)
    assert list(locked) == sorted(locked)
    machine = {"python_version": python, "platform_machine": "x86_64", "sys_platform": "linux"}
    for asked in map(Requirement, _requirements()):
        if asked.marker is None or asked.marker.evaluate(machine):
            assert asked.specifier.contains(locked[asked.name.lower()]), (str(asked), locked[asked.name.lower()])
    assert {"pytest", "ruff", "mypy", "setuptools", "wheel"} <= locked.keys() and not any(name.startswith("nvidia-") for name in locked)


def test_this_environment_has_the_locked_versions_where_the_set_up_made_it():
    from importlib.metadata import version

    if not (Path(sys.prefix) / ".vita_stamp").is_file():
        pytest.skip(f"{sys.prefix} was not made by scripts/setup_env.sh")
    constraints = (Path(sys.prefix) / "constraints.txt").read_text().splitlines()
    for name in ("pytest", "transformers", "pillow", "megatron-core", "numpy"):
        assert f"{name}=={version(name)}" in constraints
    assert f"torch=={version('torch').split('+')[0]}" in {line.split("+")[0] for line in constraints}


def _report(command: str, folder: Path, *rest: str, **urls: str) -> str:
    install: list[dict[str, Any]] = [
        {"metadata": {"name": "ours", "version": "1"}, "download_info": {"url": "file:///ours", "dir_info": {}}}
    ]
    install += [{"metadata": {"name": name, "version": "1.2+cpu"}, "download_info": {"url": url}} for name, url in urls.items()]
    (folder / "report.json").write_text(json.dumps({"install": install}))
    done = subprocess.run(
        [sys.executable, str(LOCKS / "report.py"), command, str(folder / "report.json"), *rest],
        capture_output=True, text=True, timeout=60, env={**os.environ, "no_proxy": "*"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_report_becomes_a_size_and_a_lock(tmp_path):
    import threading
    from http.server import BaseHTTPRequestHandler, HTTPServer

    class Index(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.send_response(200 if "there" in self.path else 404)
            self.send_header("Content-Length", "3000000")
            self.end_headers()

    with HTTPServer(("127.0.0.1", 0), Index) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        at = f"http://127.0.0.1:{server.server_port}"
        text = _report("size", tmp_path, a=f"{at}/there", b=f"{at}/gone", c="file:///wheels/c.whl", d=f"{at}/there2")
        server.shutdown()
    assert text == "4 packages, 6 MB to download at most, and 1 of a size the index does not tell\n"
    names = ("Torch_Thing", "nvidia-cublas", "triton", "cuda-bindings", "absl")
    lock = _report("lock", tmp_path, "3.12", **dict.fromkeys(names, ""))
    assert lock.splitlines()[1:] == ["absl==1.2", "torch-thing==1.2"] and "Python 3.12" in lock
