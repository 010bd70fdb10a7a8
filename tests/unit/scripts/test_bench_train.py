"""scripts/bench/train.py: what it prints of its rounds. The rounds themselves are replaced, as they take minutes."""

from __future__ import annotations

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
        "| engine | 90.0, 70.0 | 1.00 | 1.00 |",
        "| Trainer, padded, batches of 4 | 60.0, 40.0 | 1.60 | 1.00 |",
    ]
