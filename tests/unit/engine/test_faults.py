"""Samples that fail are masked for good and written down once."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from datetime import datetime
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from mindspeed_vita.data.batch import MediaFailure
from mindspeed_vita.data.budget import FailureBudget
from mindspeed_vita.engine import faults, metrics

LAYOUT = SimpleNamespace(tp_cp_group=None, tile_group_size=1, pp_group=None, pp_size=1)


@dataclass(frozen=True)
class Batch:
    """What FailedSamples looks at."""

    sample_ids: torch.Tensor
    failed: torch.Tensor
    failures: tuple = ()
    applied: list = field(default_factory=list)

    def with_failed(self, failed: torch.Tensor) -> Batch:
        return replace(self, failed=failed)


def batch(*ids: int, failed: tuple[int, ...] = ()) -> Batch:
    sample_ids = torch.tensor(ids)
    failures = tuple(MediaFailure("pets", number, f"{number}.jpg", "truncated") for number in failed)
    return Batch(sample_ids, torch.isin(sample_ids, torch.tensor(failed, dtype=torch.int64)), failures)


@pytest.fixture
def record(tmp_path, monkeypatch):
    monkeypatch.setattr(faults.dist, "get_world_size", lambda: 1)
    return faults.FailedSamples(tmp_path / "quarantine.jsonl", (3,))


def test_a_sample_that_failed_once_stays_masked(record):
    assert record.agree(batch(1, 2, failed=(2,)), LAYOUT, 1).failed.tolist() == [False, True]
    assert record.settle(learnt=1, step=1, last_step=9) == 1
    assert record.agree(batch(2, 3, 4), LAYOUT, 2).failed.tolist() == [True, True, False]
    assert record.settle(learnt=1, step=1, last_step=9) == 0
    assert record.ids == {2, 3}


def test_a_failure_is_written_down_once_with_its_reason(record):
    for step in (1, 2):
        record.agree(batch(2, failed=(2,)), LAYOUT, step)
        record.settle(learnt=1, step=1, last_step=9)
    lines = [json.loads(line) for line in record.quarantine.read_text().splitlines()]
    assert all(datetime.fromisoformat(line.pop("time")).tzinfo for line in lines)
    assert lines == [{"kind": "failed", "step": 1, "sample_id": 2, "source": "pets", "path": "2.jpg", "reason": "truncated"}]


def test_a_source_over_its_budget_stops_the_run_and_lists_the_worst_reasons(tmp_path, monkeypatch):
    monkeypatch.setattr(faults.dist, "get_world_size", lambda: 1)
    budget = FailureBudget(0.05, ("pets", "cars"), np.repeat([0, 1], [400, 4000]))
    record = faults.FailedSamples(tmp_path / "quarantine.jsonl", (1, 500, 501), budget=budget)
    record.agree(batch(*range(2, 21), failed=tuple(range(2, 21))), LAYOUT, 1)
    assert record.settle(learnt=1, step=1, last_step=9) == 19, "20 of 400 are 5%"
    record.agree(batch(21, failed=(21,)), LAYOUT, 2)
    message = r"source 'pets': 21 of 400 samples failed to decode, data.failure_budget=0.05 allows 20: 20 x truncated; .*quarantine"
    with pytest.raises(ValueError, match=message):
        record.settle(learnt=1, step=1, last_step=9)


def test_a_few_failures_never_stop_a_small_run(tmp_path, monkeypatch):
    monkeypatch.setattr(faults.dist, "get_world_size", lambda: 1)
    record = faults.FailedSamples(tmp_path / "q.jsonl", budget=FailureBudget(0.01, ("pets",), np.zeros(30, dtype=int)))
    record.agree(batch(*range(10), failed=tuple(range(10))), LAYOUT, 1)
    assert record.settle(learnt=1, step=1, last_step=9) == 10


def test_skipped_samples_are_written_down(record):
    record.note_skipped([SimpleNamespace(where="a.jsonl:3", reason="no messages")])
    record.note_skipped([])
    assert json.loads(record.quarantine.read_text())["reason"] == "no messages"


def test_runs_that_share_a_file_sign_their_lines(tmp_path):
    record = faults.FailedSamples(tmp_path / "quarantine.jsonl", run="runs/a")
    record.note_skipped([SimpleNamespace(where="a.jsonl:3", reason="no messages")])
    record.agree(batch(2, failed=(2,)), LAYOUT, 7)
    assert [json.loads(line)["run"] for line in record.quarantine.read_text().splitlines()] == ["runs/a"] * 2
    assert [entry["kind"] for entry in metrics.truncate(record.quarantine, 6, run="runs/a")] == ["skipped"]


def empty(record, step, learnt=0, last_step=100):
    record.agree(batch(step, failed=() if learnt else (step,)), LAYOUT, step)
    record.settle(learnt=learnt, step=step, last_step=last_step)


def test_a_run_that_learns_nothing_for_five_steps_stops_and_says_why(record):
    for step in (1, 2, 3, 4):
        empty(record, step)
    empty(record, 5, learnt=7)
    assert record.empty_steps == 0
    for step in (6, 7, 8, 9):
        empty(record, step)
    message = r"nothing was learnt in steps 6 to 10: .*no supervised token; 9 samples failed to decode \(8 x truncated\); .*quarantine"
    with pytest.raises(ValueError, match=message):
        empty(record, 10)


def test_a_short_run_in_which_no_step_learns_stops_in_its_last(record):
    empty(record, 1, last_step=2)
    with pytest.raises(ValueError, match="nothing was learnt in steps 1 to 2"):
        empty(record, 2, last_step=2)


def test_a_short_run_that_learnt_once_ends_well(record):
    empty(record, 1, learnt=1, last_step=2)
    empty(record, 2, last_step=2)
    assert record.empty_steps == 1
