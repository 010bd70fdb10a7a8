"""`vita watch`: the view of a run that goes, of one that is over, and of files that are cut or mean harm."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from mindspeed_vita.cli.main import main
from mindspeed_vita.engine.metrics import STARTED
from mindspeed_vita.pipeline.progress import RECORD
from mindspeed_vita.report.run_files import RunFiles
from mindspeed_vita.report.terminal import watch
from tests.unit.report.conftest import write_lines


def seen(folder: Path, capsys: pytest.CaptureFixture[str]) -> str:
    assert main(["watch", str(folder), "--once"]) == 0
    return capsys.readouterr().out


def write_start(run: Path, other: Path, **sections: dict[str, Any]) -> None:
    """What a start of another run wrote, with other settings in some sections."""
    recipe = json.loads((other / STARTED).read_text())["recipe"]
    changed = {name: {**recipe[name], **values} for name, values in sections.items()}
    (run / STARTED).write_text(json.dumps({"recipe": {**recipe, **changed}}))


def test_a_run_that_is_over(runs: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    told = seen(runs[0], capsys)
    lines = {line[2:].split("  ")[0] or line.split()[1]: line for line in told.splitlines()[1:-1]}
    assert "4, the run is over" in lines["step"] and "4" in lines["saved steps"] and "at step" in lines["held-out loss"]
    assert {"loss", "pictures", "text", "gradient norm", "tokens/s", "tiles/s", "seconds a step", "memory", "gate"} <= set(lines)
    assert {"vision", "projector", "language", "parts"} <= set(lines), "gradient norms, and shares of a step"


def test_the_live_view_follows_the_file_and_ends_with_the_run(runs: tuple[Path, Path], tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    whole = (runs[0] / "metrics.jsonl").read_text().splitlines(keepends=True)
    held = Console(file=io.StringIO(), force_terminal=True, width=100)
    run, looks = RunFiles(folder), iter(range(4))

    def goes_on(seconds: float) -> None:
        look = next(looks)
        if look == 0:
            (folder / "metrics.jsonl").write_text("".join(whole[:3]) + whole[3][:20])
        elif look == 1:  # a restart replaces the file by a shorter one
            (folder / "new").write_text("".join(whole[:2]))
            os.replace(folder / "new", folder / "metrics.jsonl")
        elif look == 2:
            assert [line["step"] for line in run.steps] == [1]
            (folder / "metrics.jsonl").write_text("".join(whole))
            shutil.copytree(runs[0] / "step_0000004", folder / "step_0000004")

    watch(run, held, every=0.1, pause=goes_on)
    told = held.file.getvalue()  # type: ignore[attr-defined]
    assert told.index("no step is logged yet") < told.index("none is saved yet") < told.index("4, the run is over")
    assert not run.notes and next(looks) == 3


def test_a_run_whose_last_step_is_not_saved_and_one_that_was_made_longer_are_not_over(
    runs: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    run = Path(shutil.copytree(runs[0], tmp_path / "run"))
    (run / STARTED).unlink()  # as an earlier version left it
    shutil.rmtree(run / "step_0000004")
    shutil.copytree(runs[1] / "step_0000003", run / "step_0000002")  # of 3 steps; the third is being saved
    lines = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    (run / "metrics.jsonl").write_text("".join(line for line in lines if json.loads(line)["step"] < 4))
    assert "3 of 3, 100%" in seen(run, capsys)
    shutil.copytree(runs[1] / "step_0000003", run / "step_0000003")
    assert "3, the run is over" in seen(run, capsys)
    (run / "metrics.jsonl").write_text("".join(lines))  # train.steps was raised
    assert "4 (it goes on beyond the last step of before; its next checkpoint says of how many)" in " ".join(seen(run, capsys).split())


def test_a_run_that_logs_every_fiftieth_step_is_given_time_for_fifty(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_lines(tmp_path / "run" / "metrics.jsonl", *({"step": step, "loss": 2.0, "seconds": 30.0} for step in (50, 100)))
    for minutes, late in ((40, False), (60, True)):
        written = time.time() - 60 * minutes
        os.utime(tmp_path / "run" / "metrics.jsonl", (written, written))
        assert ("NO NEW LINE" in seen(tmp_path / "run", capsys)) == late


def test_a_start_with_more_steps_is_not_over_before_it_has_a_line(
    runs: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    run = Path(shutil.copytree(runs[0], tmp_path / "run"))
    assert "4, the run is over" in seen(run, capsys)
    write_start(run, runs[0], train={"steps": 8})
    assert "4 of 8, 50%" in seen(run, capsys)
    record = {"ended": True, "step": "step_0000004", "done": {}}
    write_lines(run / RECORD, {**record, "steps": 4})
    assert "4 of 8, 50%" in seen(run, capsys), "the pipeline's record is about the run of before"
    write_lines(run / RECORD, {**record, "steps": 8})
    assert "4, the run is over" in seen(run, capsys)
    (run / RECORD).unlink()
    (run / STARTED).write_text("{")
    told = seen(run, capsys)
    assert "4, the run is over" in told and f"{STARTED} cannot be read" in told


def test_a_start_with_fewer_steps_than_were_made_is_over(
    runs: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Path(shutil.copytree(runs[0], tmp_path / "run"))
    write_start(run, runs[0], train={"steps": 2})  # vita train says that step 4 of 2 was done before
    assert "4, the run is over" in seen(run, capsys)


def test_a_fresh_run_with_rare_lines_is_given_time(runs: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_lines(tmp_path / "run" / "metrics.jsonl", {"step": 1, "loss": 2.0, "seconds": 30.0})
    write_start(tmp_path / "run", runs[0], logging={"every": 50})
    for minutes, late in ((40, False), (60, True)):
        written = time.time() - 60 * minutes
        for name in ("metrics.jsonl", STARTED):
            os.utime(tmp_path / "run" / name, (written, written))
        told = seen(tmp_path / "run", capsys)
        assert ("NO NEW LINE" in told) == late and "of 4" in told, "the steps are known before the first checkpoint"
    write_start(tmp_path / "run", runs[0], logging={"every": 50})
    assert "NO NEW LINE" not in seen(tmp_path / "run", capsys), "it was started again just now"


def test_bad_steps_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    write_lines(tmp_path / "run" / "metrics.jsonl", {"step": 1, "loss": 2.0})
    bad = {"step": 2, "action": "skip", "why": "the loss is not finite", "loss": "nan", "packs": [{"pack": 4, "samples": [7]}]}
    write_lines(tmp_path / "run" / "bad_numbers.jsonl", {**bad, "action": "stop"}, bad, {"step": 3})
    told = " ".join(seen(tmp_path / "run", capsys).split())
    assert "bad steps 2, the last: step 2, the loss is not finite (its update was left out)" in told
    assert 'bad_numbers.jsonl: 1 damaged line was left out (line 3: it has no "action")' in told


def test_a_stopped_run_says_so_and_control_characters_do_not_reach_the_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = [{"step": step, "loss": 2.0, "loss/[red]a\x1b[2J": 1.0, "seconds": 1.0} for step in range(3)]
    write_lines(tmp_path / "run" / "metrics.jsonl", *lines, "no json")
    os.utime(tmp_path / "run" / "metrics.jsonl", (1, 1))
    told = seen(tmp_path / "run", capsys)
    assert "NO NEW LINE" in told and "[red]a\N{REPLACEMENT CHARACTER}[2J" in told and "\x1b" not in told and "1 damaged" in told
    assert main(["watch", str(tmp_path / "run")]) == 2
    assert "add --once" in capsys.readouterr().err
    assert main(["watch", str(tmp_path / "run"), "--once", "--every", "nan"]) == 2


def test_checkpoints_of_mindspeed_llm_say_how_far_the_run_goes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    write_lines(run / "metrics.jsonl", *({"step": step, "loss": 2.0, "seconds": 1.0} for step in (1, 2, 3)))
    content = {"recipe": {"name": "general", "train": {"steps": 9}}}
    state = torch.frombuffer(bytearray(json.dumps(content), "utf-8"), dtype=torch.uint8)
    for step in (2, 4):  # Megatron is still writing the last one
        folder = run / f"iter_{step:07d}" / "mp_rank_00"
        folder.mkdir(parents=True)
        torch.save({"model": {"_extra_state": state}}, folder / "model_optim_rng.pt")
    (run / "latest_checkpointed_iteration.txt").write_text("2")
    told = seen(run, capsys)
    assert "general" in told and "3 of 9, 33%" in told and re.search(r"saved steps +2 ", told), told
    for path in run.rglob("*.pt"):
        path.unlink()
    for folder in run.glob("iter_*"):
        (folder / ".metadata").write_bytes(b"")  # --ckpt-format torch_dist
    assert re.search(r"step +3 \(its checkpoints do not say of how many\)", seen(run, capsys))


def test_an_address_is_refused_as_one(capsys: pytest.CaptureFixture[str]) -> None:
    for command in (["watch", "s3://bucket/run", "--once"], ["report", "s3://bucket/run", "--output", "page.html"]):
        assert main(command) == 2
        assert "s3://bucket/run is an address; the files of a run are read from its folder" in capsys.readouterr().err


def test_a_folder_of_runs_names_them(runs: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    above = runs[0].parent
    for command in (["watch", str(above), "--once"], ["report", str(above), "--output", "page.html"]):
        assert main(command) == 2
        assert f"{above} is no run itself; it holds the runs align, general; name one, such as {above / 'align'}" in capsys.readouterr().err


def of_steps(runs: tuple[Path, Path], folder: Path, *, logged: int, saved: int) -> RunFiles:
    """A run of four steps as it looks when `logged` have a line and its newest checkpoint bears the number `saved`."""
    folder.mkdir()
    shutil.copytree(runs[0] / "step_0000004", folder / f"step_{saved:07d}")
    write_lines(folder / "metrics.jsonl", *({"step": step, "loss": 1.0} for step in range(1, logged + 1)))
    run = RunFiles(folder)
    run.read()
    return run


def test_a_run_is_over_once_its_last_step_is_saved_whatever_has_a_line(runs: tuple[Path, Path], tmp_path: Path) -> None:
    assert not of_steps(runs, tmp_path / "saves", logged=4, saved=2).over, "the last step is logged, and on its way to the disk"
    assert of_steps(runs, tmp_path / "bad", logged=3, saved=4).over, "the last step had bad numbers, so it has no line"
    assert of_steps(runs, tmp_path / "usual", logged=4, saved=4).over
