"""What is read again while a run goes on."""

from __future__ import annotations

import json
from pathlib import Path

from mindspeed_vita.checkpoint.lineage import Lineage
from mindspeed_vita.report.run_files import RunFiles
from tests.unit.report.conftest import write_lines


def checkpoint_of_trainer(run: Path, step: int) -> None:
    """The files by which a checkpoint of --engine hf is known."""
    folder = run / f"checkpoint-{step}"
    folder.mkdir(parents=True)
    (folder / "recipe.json").write_text(json.dumps({"name": "of Trainer", "train": {"steps": 20}, "eval": {"patience": 2}}))
    (folder / "state.json").write_text("{}")


def write_record(run: Path, step: int) -> None:
    """The record that --engine hf writes with its export."""
    (run / "export").mkdir(exist_ok=True)
    record = Lineage(made_by="training", name="of Trainer", step=step, settings={})
    (run / "export" / "lineage.json").write_text(json.dumps(record.encode()))


def test_a_lineage_that_is_written_after_the_last_checkpoint_is_seen(tmp_path: Path) -> None:
    write_lines(tmp_path / "run" / "metrics.jsonl", {"step": 4, "loss": 1.0})
    checkpoint_of_trainer(tmp_path / "run", 4)
    run = RunFiles(tmp_path / "run")
    run.read()
    assert run.saved == [4] and run.lineage is None
    write_record(tmp_path / "run", 4)
    run.read()
    assert run.lineage is not None and run.lineage.step == 4


def test_a_record_of_an_earlier_end_is_not_that_of_a_later_checkpoint(tmp_path: Path) -> None:
    write_lines(tmp_path / "run" / "metrics.jsonl", {"step": 4, "loss": 1.0}, {"step": 14, "loss": 0.5})
    write_record(tmp_path / "run", 4)
    checkpoint_of_trainer(tmp_path / "run", 14)
    run = RunFiles(tmp_path / "run")
    run.read()
    assert run.saved == [14] and run.lineage is None


def test_a_run_that_patience_ended_is_over(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    losses = {0: 0.1, 2: 1.0, 4: 1.5, 6: 1.2}  # step 0 is the start, and takes no part
    evaluations = [{"step": step, "eval/loss": loss, "eval/data": "packs"} for step, loss in losses.items()]
    write_lines(folder / "metrics.jsonl", *({"step": step, "loss": 1.0} for step in range(1, 5)), *evaluations[:3])
    checkpoint_of_trainer(folder, 4)
    run = RunFiles(folder)
    run.read()
    assert not run.over, "one evaluation found no lower loss"
    with (folder / "metrics.jsonl").open("a") as file:
        file.writelines(json.dumps(line) + "\n" for line in ({"step": 5, "loss": 1.0}, {"step": 6, "loss": 1.0}, evaluations[3]))
    run.read()
    assert not run.over, "its last step is not saved yet"
    checkpoint_of_trainer(folder, 6)
    run.read()
    assert run.over


def test_a_damaged_recipe_is_told_at_each_look_until_it_is_mended(tmp_path: Path) -> None:
    write_lines(tmp_path / "run" / "metrics.jsonl", {"step": 4, "loss": 1.0})
    checkpoint_of_trainer(tmp_path / "run", 4)
    recipe = tmp_path / "run" / "checkpoint-4" / "recipe.json"
    whole = recipe.read_text()
    recipe.write_text(whole[:-1])
    run = RunFiles(tmp_path / "run")
    for _ in range(2):
        run.read()
        assert [note for note in run.notes if "recipe.json cannot be read" in note] and run.last_step is None
    recipe.write_text(whole)
    run.read()
    assert not run.notes and run.last_step == 20
