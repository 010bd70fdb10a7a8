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
    (folder / "recipe.json").write_text(json.dumps({"name": "of Trainer", "train": {"steps": step}}))
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
