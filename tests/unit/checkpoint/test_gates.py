"""Gates: what holds a step back, what is written, and what the hand-over refuses."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from mindspeed_vita.checkpoint.gates import Gate, check_handover, gates_of, judged_step, write_gate
from mindspeed_vita.checkpoint.megatron.rank_files import RANK_FILE, TRACKER
from mindspeed_vita.evaluation.gates import record_gate, status_of


def gate(measured: float = 1.0, better: str = "lower", name: str = "held_out_loss", bound: float = 1.5) -> Gate:
    return Gate(name=name, measured=measured, bound=bound, better=better)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    for step in (5, 10):
        folder = tmp_path / "run" / f"step_{step:07d}"
        folder.mkdir(parents=True)
        (folder / "checksums.json").write_text("{}")
    return tmp_path / "run"


@pytest.mark.parametrize(
    ("measured", "better", "held"),
    [(1.4, "lower", False), (1.5, "lower", False), (1.6, "lower", True), (1.6, "higher", False), (1.5, "higher", False)]
    + [(1.4, "higher", True), (math.nan, "lower", True), (math.nan, "higher", True)],
)
def test_a_gate_holds_what_is_worse_than_its_bound(measured, better, held):
    found = gate(measured, better)
    assert found.held == held and status_of(found) == int(held)
    assert ("HELD BACK" in found.describe()) == held


def test_what_is_written_is_read_again_and_says_what_it_decided(run):
    path = record_gate(run, gate(2.0))
    assert path == run / "gates" / "held_out_loss.step_0000010.json" and json.loads(path.read_text())["held"] is True
    assert gates_of(run / "step_0000010") == {path: gate(2.0)} and gates_of(run / "step_0000005") == {}


@pytest.mark.parametrize("value", ["true", "null", '"1"', "1" + "0" * 400])
def test_a_value_that_is_no_number_is_named(run, value):
    path = record_gate(run, gate(2.0))
    path.write_text(path.read_text().replace("2.0", value))
    with pytest.raises(ValueError, match=f"{path.name} is no gate .*expected numbers.*; measure again"):
        check_handover(run)


def test_the_step_that_was_measured_is_held_back_and_no_other(run):
    record_gate(run / "step_0000010", gate(2.0))
    record_gate(run, gate(0.2, "higher", "needle", 0.95))
    both = r"step_0000010 is held back: gate held_out_loss: .* at most 1.5: HELD BACK .*; gate needle: .* at least 0.95"
    with pytest.raises(ValueError, match=both):
        check_handover(run)
    check_handover(run / "step_0000005")
    record_gate(run, gate(1.0))
    record_gate(run, gate(0.96, "higher", "needle", 0.95))
    check_handover(run)


def test_what_mindspeed_llm_saved_is_judged_by_its_iteration(tmp_path):
    folder = tmp_path / "saved"
    (folder / "iter_0000010" / "mp_rank_00").mkdir(parents=True)
    (folder / "iter_0000010" / "mp_rank_00" / RANK_FILE).touch()
    (folder / TRACKER).write_text("10")
    assert judged_step(folder) == judged_step(folder / "iter_0000010") == folder / "step_0000010"
    record_gate(folder, gate(2.0))
    with pytest.raises(ValueError, match="is held back"):
        check_handover(folder)
    (folder / TRACKER).write_text("release")
    assert judged_step(folder) is None and record_gate(folder, gate(2.0)) is None
    check_handover(folder)


def test_an_export_has_no_gate(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    assert record_gate(tmp_path, gate(2.0)) is None


@pytest.mark.parametrize("text", ["{}", "[1]", "no JSON", '{"name": "x", "measured": 1, "bound": 2, "better": "bigger"}'])
def test_a_file_that_is_no_gate_is_named(run, text):
    path = write_gate(run / "step_0000010", gate())
    path.write_text(text)
    with pytest.raises(ValueError, match="held_out_loss.step_0000010.json is no gate .*or remove it"):
        check_handover(run)


@pytest.mark.parametrize("name", ["", "Needle", "a/b", "a.b"])
def test_a_name_that_is_no_file_name_is_refused(name):
    with pytest.raises(ValueError, match="expected a name of a-z"):
        gate(name=name)
