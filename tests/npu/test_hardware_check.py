"""scripts/npu_check.py on a simulated Ascend and scripts/gpu_check.py on a CPU: everything passes, and what fails is told."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from mindspeed_vita.checks.hardware_check.ascend import check_schemas, schemas
from mindspeed_vita.checks.hardware_check.main import main
from mindspeed_vita.checks.hardware_check.report import Report
from mindspeed_vita.checks.hardware_check.training import SIZES, speed_recipe
from mindspeed_vita.choices import RECOMPUTES
from mindspeed_vita.config import validate
from tests.npu.simulator.enter import ROOT


def run(command: list[str], environment: dict[str, str], folder: Path) -> dict[str, Any]:
    """The JSON report of a script that must succeed. The tiny model only: a simulated NPU's memory is this machine's."""
    report = folder / "report.json"
    done = subprocess.run(
        [sys.executable, *command, "--size", "tiny", "--json", str(report)],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    assert "\nPASS: " in done.stdout and "FAIL" not in done.stdout
    return json.loads(report.read_text())


@pytest.mark.slow
def test_an_npu(simulated: dict[str, str], tmp_path: Path) -> None:
    command = ["-m", "tests.npu.simulator.enter", "scripts/npu_check.py", "--note", "simulated Ascend"]
    report = run(command, simulated, tmp_path)
    assert report["passed"] and report["facts"]["note"] == "simulated Ascend"
    assert report["facts"]["device"].startswith("Ascend910B2")
    assert report["facts"]["softmax statistics of packed attention"] == "TND"
    names = " ".join(row["name"] for row in report["checks"])
    torch_npu = torch.__version__.split("+")[0]  # the overlay's equals torch's, or the test is skipped
    assert "operators that do not take our calls" in names and f"operators unlike the table's torch_npu {torch_npu}" in names
    for part in ("fused merge", "npu causal blocks", "npu unmasked", "npu tiles", "rms_norm", "ring of 8", "20 steps"):
        assert part in names


@pytest.mark.slow
def test_a_cpu_in_a_gpus_place(tmp_path: Path) -> None:
    report = run(["scripts/gpu_check.py"], {"DEVICE": "cpu"}, tmp_path)
    assert report["passed"] and report["facts"]["device"] == "cpu"
    names = " ".join(row["name"] for row in report["checks"])
    for part in ("torch_native causal blocks", "torch_native tiles", "over one device", "20 steps of a tiny model, bf16"):
        assert part in names
    assert any("tokens/s" in value for value in report["facts"].values())
    for mode in RECOMPUTES:
        assert report["numbers"][f"step seconds, tiny, 2048 tokens, recompute {mode}"] > 0
    attention = [f"attention {direction}, torch_native, 512 tokens" for direction in ("forward", "backward")]
    for part in (*attention, "head, 64 rows of 1024 words"):
        assert report["numbers"][f"{part}, ratio"] > 0


@pytest.mark.parametrize("size", SIZES)
def test_the_recipes_of_the_measured_models_are_valid(size: str) -> None:
    recipe = speed_recipe(size, 4)
    validate(recipe, 1)
    assert recipe.data.seq_length == SIZES[size]["tokens"]


def test_a_device_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DEVICE")
    with pytest.raises(ValueError, match="DEVICE=npu was asked for, but torch_npu"):
        main("npu", [])


def parsed(version: str, change: tuple[str, str] = ("", "")) -> dict[str, Any]:
    """The table's operators of a version, with one text replaced by another."""
    return {name: torch._C.parse_schema(text.replace(*change)) for name, text in schemas()[version].items()}


@pytest.mark.parametrize("version", schemas())
def test_every_version_of_the_table_takes_our_calls(version: str) -> None:
    report = Report(say=lambda line: None)
    check_schemas(report, version, parsed(version))
    assert report.passed and len(report.outcomes) == 2


@pytest.mark.parametrize(
    ("version", "change", "failures"),
    [
        ("2.13.0", (', str softmax_layout=""', ""), 2),  # an argument that is passed is gone
        ("2.13.0", ("Tensor? sink=None", "Tensor? sinks=None"), 1),  # another one has changed
        ("2.99.0", (", Tensor? sink=None", ""), 0),  # unknown, and takes what is passed
        ("2.99.0", ("float scale=1.", "int scale=1"), 1),
    ],
)
def test_a_changed_operator_is_told(version: str, change: tuple[str, str], failures: int) -> None:
    report = Report(say=lambda line: None)
    check_schemas(report, version, parsed("2.13.0", change=change))
    assert sum(not outcome.passed for outcome in report.outcomes) == failures


def test_failures_are_told_and_do_not_stop_the_rest(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    report = Report()

    def broken(_: Report) -> None:
        raise RuntimeError("aclnn error 161002")

    report.section("one", broken)
    report.section("two", lambda one: one.check("a number", float("nan"), 1.0))
    report.section("three", lambda one: one.check("another", 0.5, 1.0))
    assert not report.passed
    report.write(tmp_path / "report.json")
    rows = json.loads((tmp_path / "report.json").read_text())["checks"]
    assert [row["passed"] for row in rows] == [False, False, True]
    assert "FAIL   one: inf, at most 0.00e+00 (RuntimeError: aclnn error 161002)" in capsys.readouterr().out


def test_nothing_checked_is_no_success() -> None:
    assert not Report().passed
