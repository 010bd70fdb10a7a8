"""Samples that fail are masked for good and written down once; a stop signal ends a run at once and puts the old handlers back."""

from __future__ import annotations

import json
import os
import signal
from dataclasses import dataclass, field, replace
from types import SimpleNamespace

import pytest
import torch

from mindspeed_vita.data.batch import MediaFailure
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
    assert record.settle() == 1
    assert record.agree(batch(2, 3, 4), LAYOUT, 2).failed.tolist() == [True, True, False]
    assert record.settle() == 0
    assert record.ids == {2, 3}


def test_a_failure_is_written_down_once_with_its_reason(record):
    for step in (1, 2):
        record.agree(batch(2, failed=(2,)), LAYOUT, step)
        record.settle()
    lines = [json.loads(line) for line in record.quarantine.read_text().splitlines()]
    assert lines == [{"kind": "failed", "step": 1, "sample_id": 2, "source": "pets", "path": "2.jpg", "reason": "truncated"}]


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


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_signal_ends_the_block(number):
    before = signal.getsignal(number)
    with pytest.raises(faults.Stopped, match=signal.Signals(number).name), faults.stop_signals():
        os.kill(os.getpid(), number)
        signal.pause()
    assert signal.getsignal(number) is before
