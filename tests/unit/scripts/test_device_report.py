"""scripts/device_report.py: the whole run in its smoke form, and what becomes of parts that fail, are too slow or have no time left."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mindspeed_vita.platform.phases import PHASES
from scripts.device_report import ROOT, Part, Run, main, phase_times, planner_device


def run_in(folder: Path, seconds: float) -> Run:
    """A run that has some seconds from now on."""
    (folder / "out").mkdir()
    return Run(out=folder / "out", work=folder, title="A run", deadline=time.monotonic() + seconds)


def test_a_part_that_fails_is_named_and_the_others_run(tmp_path: Path) -> None:
    run = run_in(tmp_path, 60)
    run.run(Part(name="broken", command=["-c", "raise SystemExit('no such kernel')"], seconds=1))
    run.run(Part(name="after it", command=["-c", "print('fine')"], seconds=1, needs="broken"))
    run.run(Part(name="another", command=["-c", "print('fine')"], seconds=1))
    run.run(Part(name="long", command=["-c", "print('fine')"], seconds=100))
    run.write()
    results = [outcome.result for outcome in run.outcomes]
    assert results[:3] == ["failed with exit status 1", "skipped: it needs the part broken", "passed"]
    assert results[3].startswith("skipped: it takes about 100 s, and ")
    assert "| broken | failed with exit status 1 |" in (run.out / "report.md").read_text()
    assert json.loads((run.out / "report.json").read_text())["parts"][0]["output"].strip() == "no such kernel"
    log = (run.out / "log.txt").read_text()
    assert "=== broken" in log and "no such kernel" in log and log.count("fine") == 2  # once in the command


def test_a_part_that_does_not_end_is_ended_with_its_processes(tmp_path: Path) -> None:
    run, mark = run_in(tmp_path, 3), tmp_path / "still alive"
    child = f"import time; time.sleep(6); open({str(mark)!r}, 'w')"
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    outcome = run.run(Part(name="hangs", command=["-c", parent], seconds=1))
    assert outcome.result == "ended after 3 s: no time was left"
    time.sleep(4)
    assert not mark.exists()


def test_phases_are_counted_in_either_kind_of_trace(tmp_path: Path) -> None:
    ours, others = {"ph": "X", "name": "vita.ring", "ts": 1, "dur": 500.0}, {"ph": "X", "name": "ring", "dur": 9}
    events = [ours, others, {"ph": "M", "name": "vita.ring"}]
    for content in ({"traceEvents": events}, events):  # torch's, and torch_npu's
        with gzip.open(tmp_path / "trace.json.gz", "wt") as file:
            json.dump(content, file)
        assert phase_times(tmp_path / "trace.json.gz")["ring"] == (1, pytest.approx(5e-4))


@pytest.mark.parametrize(("driver", "table"), [("NVIDIA H200", "H200"), ("Ascend910B2", "910B"), ("NVIDIA H20-3e", "H20"), ("cpu", None)])
def test_the_planners_table_is_found_by_the_drivers_name(driver: str, table: str | None) -> None:
    class Device:
        def device_name(self) -> str:
            return driver

    assert planner_device(Device()) == table  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("words", "message"),
    [(["--out", "taken"], "--out taken is a file; name a new folder"), (["--out", "new", "--minutes", "nan"], "--minutes is nan")],
)
def test_bad_arguments_are_one_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "taken").write_text("")
    monkeypatch.setattr(sys, "argv", ["device_report.py", *words])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2 and message in capsys.readouterr().err and not (tmp_path / "new").exists()


@pytest.mark.slow
def test_the_whole_run_on_a_cpu(tmp_path: Path) -> None:
    out = tmp_path / "results"
    sections = "curve,attention speed,answers,calibration"
    command = [sys.executable, "scripts/device_report.py", "--smoke", "--out", str(out), "--planner-device", "H100", "--only", sections]
    environment = {**os.environ, "DEVICE": "cpu"}
    done = subprocess.run([*command, "--minutes", "60"], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}\n{(out / 'log.txt').read_text()}"
    names = ("calibration.jsonl", "calibration.yaml", "log.txt", "report.json", "report.md", "trace.json.gz", "training.jsonl")
    assert sorted(path.name for path in out.iterdir()) == list(names)
    report = json.loads((out / "report.json").read_text())
    assert {part["name"]: part["result"] for part in report["parts"]} == dict.fromkeys(
        ("checks", "data", "training", "answer", "plan"), "passed"
    )
    assert report["checks"]["passed"] and report["checks"]["numbers"]["decode seconds a token, tiny"] > 0
    assert len(report["training"]) == 30
    counts = {name: count for name, (count, _) in phase_times(out / "trace.json.gz").items()}
    assert all(counts[name] for name in PHASES if name != "exchange") and counts["exchange"] == 0  # one process exchanges nothing
    page = (out / "report.md").read_text()
    headings = ("# Smoke run on cpu", "## Training", "## Answer", "## Plan", "## Hardware check of cpu")
    for text in (*headings, "| training | passed |", "| ring | ", "calibrated"):
        assert text in page
