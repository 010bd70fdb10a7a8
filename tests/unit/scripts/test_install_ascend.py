"""scripts/install_ascend.sh against fake npu-smi and CANN folders: present, absent, of wrong versions; and what a real run would start."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from mindspeed_vita.checks.doctor.matrix import ASCEND, DRIVER_LOWEST, line
from tests.fake_ascend import make_ascend, make_program

SCRIPT = Path(__file__).resolve().parents[3] / "scripts" / "install_ascend.sh"


THIS_PYTHON_AS_3_11 = f"""case "$2" in *python_version*) echo 3.11.9; exit ;; esac
exec "{sys.executable}" "$@\""""
"""MindSpeed-LLM runs on Python 3.10 and 3.11, and these tests on more."""


def install(folder: Path, *, path: str, dry: bool = True, python: str = "", image: bool = False) -> subprocess.CompletedProcess[str]:
    if not python:
        make_program(folder / "bin" / "python-of-ascend", THIS_PYTHON_AS_3_11)
        python = str(folder / "bin" / "python-of-ascend")
    nowhere = {"HOME": str(folder), "ASCEND_ROOT": str(folder / "Ascend"), "PYTHON": python, "DRY_RUN": str(int(dry)), "PATH": path}
    nowhere["IN_IMAGE"] = str(int(image))
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("ASCEND", "TORCH_INDEX", "MIND", "MEGATRON"))}
    command = ["bash", str(SCRIPT), str(folder / "upstream")]
    return subprocess.run(command, env={**environment, **nowhere}, capture_output=True, text=True, timeout=120)


@pytest.fixture
def node(tmp_path):
    """Makes an Ascend node of files; returns PATH on it."""
    return lambda **versions: make_ascend(tmp_path, **versions)["PATH"]


@pytest.fixture
def old_python(tmp_path) -> str:
    make_program(tmp_path / "bin" / "python3.8", "echo 3.8.10")
    return str(tmp_path / "bin" / "python3.8")


def steps(output: str) -> list[str]:
    return [row[2:] for row in output.splitlines() if row.startswith("+ ")]


def test_on_a_node_that_has_everything_a_dry_run_shows_every_step(tmp_path, node):
    done = install(tmp_path, path=node())
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"ok +driver 25.5.0\n +ok +CANN 9.1.0 in .*/Ascend/cann\n +ok +Python 3", done.stdout)
    text = "\n".join(steps(done.stdout))
    order = ["install torch==", "install torch-npu==", "clone .* core_v0.12.1", "clone .*r0.12.1 .*MindSpeed.git"]
    order += ["clone .* 26.1.0 .*MindSpeed-LLM.git", "install -r .*MindSpeed/requirements.txt", "write .*env.sh"]
    order += ["install torch==2.7.1 transformers==5.2.0 jinja2"]
    order += ["install --no-deps", "doctor"]
    found = [re.search(pattern, text) for pattern in order]
    assert all(found), [pattern for pattern, match in zip(order, found) if match is None]
    assert [match.start() for match in found] == sorted(match.start() for match in found)
    assert done.stdout.splitlines()[-1] == "PASS: dry run, every check passed"
    assert not (tmp_path / "upstream").exists()


def test_on_a_machine_without_driver_and_cann_both_are_named_with_a_remedy(tmp_path):
    done = install(tmp_path, path=os.environ["PATH"])
    assert done.returncode == 1
    assert re.search(r"PROBLEM +npu-smi info fails: command not found\n +remedy: install driver and firmware 25.2", done.stdout)
    assert re.search(r"PROBLEM +CANN was not found .*\n +remedy: install CANN 9.1.0", done.stdout)
    assert done.stdout.splitlines()[-1] == "FAIL: dry run, 2 problems" and len(steps(done.stdout)) >= 12


@pytest.mark.parametrize("cann, driver", [("8.5.0", "25.0.rc1.1"), ("9.0.0", "24.1.rc3"), ("9.10.0", "23.0.7")])
def test_wrong_versions_are_named(tmp_path, node, old_python, cann, driver):
    done = install(tmp_path, path=node(cann=cann, driver=driver), python=old_python)
    assert done.returncode == 1
    assert all(f"PROBLEM  {what}" in done.stdout for what in (f"driver {driver}\n", f"CANN {cann} in", "Python 3.8.10\n")), done.stdout
    assert done.stdout.splitlines()[-1] == "FAIL: dry run, 3 problems"


def test_a_driver_that_does_not_answer_is_a_problem(tmp_path, node):
    path = node(npu_smi=None)
    make_program(tmp_path / "bin" / "npu-smi", "echo 'dcmi module initialize failed. ret is -8005' >&2; exit 255")
    done = install(tmp_path, path=path)
    assert "PROBLEM  npu-smi info fails: dcmi module initialize failed. ret is -8005" in done.stdout


def test_a_real_run_changes_nothing_while_a_check_fails(tmp_path, node):
    done = install(tmp_path, path=node(cann="8.5.0"), dry=False)
    assert done.returncode == 1 and done.stdout.splitlines()[-1] == "FAIL: 1 problems; nothing was changed"
    assert not steps(done.stdout) and not (tmp_path / "upstream").exists()


@pytest.fixture
def recorders(tmp_path) -> tuple[str, Path]:
    """A git and a Python that write down what they are asked, and their log; Python answers -c for real, doctor ends with status 3."""
    log = tmp_path / "log"
    record = f'{{ printf %s "$0"; printf " %q" "$@"; echo; }} >>"{log}"'
    make_program(tmp_path / "bin" / "git", record + '\nif [ "$1" = clone ]; then mkdir -p "${@: -1}"; fi')
    python = tmp_path / "bin" / "python-recorded"
    make_program(python, f'if [ "$1" = -c ]; then\n{THIS_PYTHON_AS_3_11}\nfi\n{record}\n[ "$3" != doctor ] || exit 3')
    for program in (tmp_path / "bin" / "git", python):
        program.write_text(program.read_text().replace("#!/bin/sh", "#!/usr/bin/env bash"))
    return str(python), log


def test_a_real_run_starts_what_the_dry_run_printed_and_returns_doctors_status(tmp_path, node, recorders):
    python, log = recorders
    path = node()
    dry = install(tmp_path, path=path, python=python)
    assert dry.returncode == 0, dry.stdout
    log.unlink()
    real = install(tmp_path, path=path, python=python, dry=False)
    assert real.returncode == 3, real.stdout + real.stderr
    started = [shlex.split(row) for row in log.read_text().splitlines()]
    started = [[Path(row[0]).name, *row[1:]] for row in started if row[1:3] != ["-m", "pip"] or "--version" not in row]
    printed = [shlex.split(row) for row in steps(dry.stdout)]
    printed = [[Path(row[0]).name, *row[1:]] for row in printed if Path(row[0]).name in ("git", "python-recorded")]
    assert started[:-1] == printed
    assert started[-1][1:] == ["-m", "mindspeed_vita.cli.main", "doctor", "--device", "npu"]
    environment = (tmp_path / "upstream" / "env.sh").read_text()
    code = f"source {tmp_path}/upstream/env.sh && echo $ASCEND_HOME_PATH $PYTHONPATH"
    sourced = subprocess.run(["bash", "-c", code], env={"PATH": path, "PYTHONPATH": "mine"}, capture_output=True, text=True)
    upstream = tmp_path / "upstream"
    expected = f"{tmp_path}/Ascend/cann {upstream}/MindSpeed-LLM:{upstream}/MindSpeed:{upstream}/Megatron-LM:mine"
    assert sourced.stdout.strip() == expected, environment


def test_in_an_image_the_driver_is_not_asked_for_and_doctors_status_does_not_stop_the_build(tmp_path, node, recorders):
    python, log = recorders
    path = node(npu_smi=None)
    done = install(tmp_path, path=path, python=python, dry=False, image=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "left out driver" in done.stdout and "run vita doctor there" in done.stdout
    assert log.read_text().count("doctor") == 1
    assert install(tmp_path, path=node(cann="8.5.0", npu_smi=None), python=python, dry=False, image=True).returncode == 1


def test_the_pins_are_those_of_the_doctor():
    text = SCRIPT.read_text()
    pins = dict(re.findall(r"\b([A-Z_]+)=([\w.]+)(?=[ \n])", text.split("MEGATRON_URL=")[0].split("# The pins")[1]))
    lowest = DRIVER_LOWEST[line(ASCEND.cann)]
    versions = {"TORCH": ASCEND.torch, "TORCH_NPU": ASCEND.torch_npu, "CANN": "9.1", "DRIVER": lowest, "TRANSFORMERS": ASCEND.transformers}
    names = {"Megatron-LM": "MEGATRON", "MindSpeed": "MINDSPEED", "MindSpeed-LLM": "MINDSPEED_LLM"}
    for name, project in ASCEND.projects:
        versions |= {f"{names[name]}_REF": project.ref, f"{names[name]}_COMMIT": project.commit}
        assert f":-{project.url}}}" in text
    assert pins == versions and ASCEND.cann.startswith("9.1.")
