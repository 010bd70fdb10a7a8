"""The tests of this folder once more, under the oldest line of transformers. scripts/hf_matrix.sh runs the lines between."""

from __future__ import annotations

import os
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
import transformers

from tests.hf_matrix.overlays import OLDEST, OVERLAYS, ROOT, installed, is_made, overlay
from tests.hf_matrix.table import read, table


@pytest.mark.skipif("VITA_HF_MATRIX_WORLD" in os.environ, reason="one run under one line; scripts/hf_matrix.sh goes over the lines")
@pytest.mark.skipif(not is_made(OLDEST), reason="no overlay of the oldest line; python -m tests.hf_matrix.overlays --oldest makes it")
def test_the_oldest_line_behaves_like_the_installed_one(world: Path, tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(overlay(OLDEST)), "VITA_HF_MATRIX_WORLD": str(world), "VITA_HF_MATRIX_LINE": OLDEST}
    command = [sys.executable, "-m", "pytest", "-q", "--tb=short", "-p", "no:cacheprovider", f"--junitxml={tmp_path / 'report.xml'}"]
    done = subprocess.run(
        [*command, "tests/hf_matrix"], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=900, check=False
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    cases = list(ElementTree.parse(tmp_path / "report.xml").getroot().iter("testcase"))
    assert len(cases) - sum(case.find("skipped") is not None for case in cases) > 50


def test_this_process_runs_the_release_it_is_meant_to() -> None:
    meant = os.environ.get("VITA_HF_MATRIX_LINE")
    assert transformers.__version__ == (meant or installed())
    overlays = [folder for folder in Path(transformers.__file__).parents if folder.parent == OVERLAYS]
    given = os.environ.get("PYTHONPATH", "").split(os.pathsep)[0]
    assert overlays == ([overlay(meant)] if meant and given == str(overlay(meant)) else [])


@pytest.mark.skipif("VITA_HF_MATRIX_WORLD" in os.environ, reason="one run under one line")
def test_a_run_under_another_release_than_is_meant_fails(tmp_path: Path) -> None:
    environment = {**os.environ, "VITA_HF_MATRIX_WORLD": str(tmp_path), "VITA_HF_MATRIX_LINE": OLDEST}
    test = "tests/hf_matrix/test_lines.py::test_this_process_runs_the_release_it_is_meant_to"
    command = [sys.executable, "-m", "pytest", "-q", "--tb=short", "-p", "no:cacheprovider", test]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 1 and f"assert '{installed()}' == " in done.stdout, done.stdout[-3000:]


def test_table_names_a_failure(tmp_path: Path) -> None:
    (tmp_path / "1.0.xml").write_text(
        '<testsuites><testsuite><testcase classname="tests.a.test_b" name="test_works[1]"/>'
        '<testcase classname="tests.a.test_b" name="test_works[2]"><failure/></testcase>'
        '<testcase classname="tests.a.test_b" name="test_skips"><skipped/></testcase>'
        '<testcase classname="tests.hf_matrix.test_lines" name="test_c"/></testsuite></testsuites>'
    )
    lines = table({"1.0": read(tmp_path / "1.0.xml")}).splitlines()
    assert lines[2:] == ["| b: works | FAIL 1 of 2 |", "| b: skips | skipped |", "| all | FAIL 1 of 3 |"]
    failed = {"lines: c": ["FAIL"]}
    assert table({"1.0": failed}).splitlines()[2:] == ["| lines: c | FAIL 1 of 1 |", "| all | FAIL 1 of 1 |"]
