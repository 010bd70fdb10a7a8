"""scripts/bench/train.py: what it prints of its rounds. The rounds themselves are replaced, as they take minutes."""

from __future__ import annotations

import os

import pytest

from scripts.bench import train


def test_the_ratio_of_two_rounds_is_that_of_their_means(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    engine, trainer = iter([90.0, 70.0]), iter([60.0, 40.0])
    monkeypatch.setattr(train, "launch", lambda *unused: "")
    monkeypatch.setattr(train, "write_photos", lambda folder: None)
    monkeypatch.setattr(train, "load_recipe", lambda *unused: None)
    monkeypatch.setattr(
        train, "engine_round", lambda *unused: {"samples_per_second": next(engine), "samples_per_step": 8.0, "memory": 2.0**30}
    )
    monkeypatch.setattr(train, "trainer_round", lambda *unused: {"samples_per_second": next(trainer), "memory": 2.0**30})
    train.compare("photos", rounds=2, steps=1)
    assert capsys.readouterr().out.splitlines() == [
        "| photos, processes: 2 | engine | 90.0, 70.0 | 1.00 | 1.00 |",
        "| photos, processes: 2 | Trainer, padded, batches of 4 | 60.0, 40.0 | 1.60 | 1.00 |",
    ]


def test_rounds_that_fail_are_told_and_do_not_count(capsys: pytest.CaptureFixture[str]) -> None:
    round_of = {"samples_per_second": 8.0, "memory": 2.0**31}
    slower = {**round_of, "samples_per_second": 2.0}
    train.print_rows("mixture", 1, {"engine": [round_of, round_of], "padded": [None, slower], "grouped": [None]})
    assert capsys.readouterr().out.splitlines() == [
        "| mixture, processes: 1 | engine | 8.0, 8.0 | 1.00 | 2.00 |",
        "| mixture, processes: 1 | padded | failed, 2.0 | 4.00 | 2.00 |",
        "| mixture, processes: 1 | grouped | failed |  |  |",
    ]


def test_a_process_that_was_killed_says_so() -> None:
    with pytest.raises(train.Failed, match="killed, maybe for want of memory"):
        train.launch(["-c", "import os; os.kill(os.getpid(), 9)"], 1, dict(os.environ))
