"""scripts/npu_check.py on a simulated Ascend and scripts/gpu_check.py on a CPU: everything passes, and what fails is told."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Callable

import pytest
import torch

from mindspeed_vita.checks.hardware_check.ascend import check_schemas, schemas
from mindspeed_vita.checks.hardware_check.main import main
from mindspeed_vita.checks.hardware_check.report import Report
from mindspeed_vita.checks.hardware_check.sections import Section, run_sections
from mindspeed_vita.checks.hardware_check.sizes import SIZES
from mindspeed_vita.checks.hardware_check.step_speed import MEASURED, PLANNED, calibration_recipe, speed_recipe, vision_pack
from mindspeed_vita.choices import RECOMPUTES
from mindspeed_vita.config import load_recipe, recipe_from_dict, validate
from mindspeed_vita.planner.calibration import read_calibration
from mindspeed_vita.planner.trace.packs import PackContent, make_pack
from tests.npu.simulator.enter import ROOT


def run(command: list[str], environment: dict[str, str], folder: Path) -> dict[str, Any]:
    """The JSON report of a script that must succeed. The tiny model only: a simulated NPU's memory is this machine's."""
    done = subprocess.run(
        [sys.executable, *command, "--size", "tiny", "--budget", "100000", "--out", str(folder)],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    assert "\nPASS: " in done.stdout and "FAIL" not in done.stdout
    report = json.loads((folder / "report.json").read_text())
    assert report["skipped"] == {} and report["unfinished"] == ""
    return report


@pytest.mark.slow
def test_an_npu(simulated: dict[str, str], tmp_path: Path) -> None:
    command = ["-m", "tests.npu.simulator.enter", "scripts/npu_check.py", "--note", "simulated Ascend", "--devices", "1"]
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
    report = run(["scripts/gpu_check.py", "--devices", "2", "--peak-tflops", "0.5"], {"DEVICE": "cpu"}, tmp_path)
    assert report["passed"] and report["facts"]["device"] == "cpu"
    names = " ".join(row["name"] for row in report["checks"])
    for part in ("torch_native causal blocks", "torch_native tiles", "over one device", "20 steps of a tiny model, bf16"):
        assert part in names
    assert any("MFU" in value for value in report["facts"].values())
    for mode in (*RECOMPUTES, "full, inputs offloaded", "full_but_attention, inputs offloaded"):
        assert report["numbers"][f"step seconds, tiny, 2048 tokens, recompute {mode}"] > 0
    attention = [f"attention {direction}, torch_native, 512 tokens, ratio" for direction in ("forward", "backward")]
    rows = [f"{name}, by plain torch, ratio" for name in ("rms_norm", "swiglu", "apply_rotary", "row_losses")]
    tower = ["tower tiles per second, forward", "tower tiles per second, forward and backward"]
    ring = [f"ring of 2, 512 tokens, {direction}, over its attention alone" for direction in ("forward", "backward")]
    answers = ["decode seconds a token, tiny", "decode, long prompt over short", "decode, step of 16 over one"]
    others = ["head, 64 rows of 1024 words, ratio", "calibration seconds, tiny, 2048 tokens"]
    for name in (*attention, *rows, *tower, *ring, *answers, *others):
        assert report["numbers"][name] > 0, name
    page = (tmp_path / "report.md").read_text()
    assert page.startswith("# Hardware check of cpu\n") and "| blocks | " in page and "## ring overlap" in page
    measured = read_calibration(str(tmp_path / MEASURED))
    validate(load_recipe(tmp_path / PLANNED), 1)
    assert measured["seconds"] > 0


def test_the_calibration_measures_the_pack_that_is_planned() -> None:
    recipe = recipe_from_dict(calibration_recipe(SIZES["1.5b"]))
    layout = SimpleNamespace(tile_group_size=1, tile_rank=0, is_first_stage=True, ring_size=1, node_size=0)
    planned, measured = make_pack(recipe, layout, PackContent()), vision_pack(recipe)
    for name in ("cu_seqlens", "tile_first_token", "positions_T", "weights_T", "tokens_T", "labels_T"):
        assert torch.equal(getattr(planned, name), getattr(measured, name)), name


def test_sections_that_no_longer_fit_are_named_and_the_report_is_written_all_the_same(tmp_path: Path) -> None:
    report, now, written = Report(say=lambda line: None), [0.0], []

    def passes(seconds: float) -> Callable[[Report], None]:
        def run(one: Report) -> None:
            now[0] += seconds
            one.check("a number", 0.5, 1.0)

        return run

    def after() -> None:
        report.write(tmp_path / "report.json")
        written.append(json.loads((tmp_path / "report.json").read_text())["unfinished"])

    sections = [
        Section(name="first", run=passes(40), seconds=10),
        Section(name="long", run=passes(1), seconds=61),
        Section(name="short", run=passes(1), seconds=20),
        Section(name="like the first", run=passes(1), seconds=1, like="first"),
    ]
    run_sections(report, sections, budget=100, after=after, clock=lambda: now[0])
    assert report.skipped == {"long": "it takes about 61 s, and 60 of 100 s are left"}
    assert written == ["", "first", "", "", "short", "", "like the first", ""]
    assert [name for name, _ in report.seconds.items()] == ["first", "short", "like the first"]
    assert "- left out: long: it takes about 61 s" in report.page("A page")


def test_the_time_of_a_like_section_counts_once_it_is_known() -> None:
    report, now = Report(say=lambda line: None), [0.0]
    report.seconds["first"] = 40.0
    run_sections(
        report, [Section(name="second", run=lambda one: None, seconds=1, like="first")], budget=47, after=lambda: None, clock=lambda: now[0]
    )
    assert report.skipped == {"second": "it takes about 48 s, and 47 of 47 s are left"}


@pytest.mark.parametrize("size", SIZES)
def test_the_recipes_of_the_measured_models_are_valid(size: str) -> None:
    for recipe in (speed_recipe(SIZES[size]), recipe_from_dict(calibration_recipe(SIZES[size]))):
        validate(recipe, 1)
        assert recipe.data.seq_length == SIZES[size].tokens


def test_a_device_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.delenv("DEVICE")
    with pytest.raises(SystemExit) as ended:
        main("npu", [])
    said = capsys.readouterr().err
    assert ended.value.code == 2 and "DEVICE=npu was asked for, but torch_npu" in said and "this script needs one npu" in said, said


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
