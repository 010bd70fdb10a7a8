"""scripts/bench/hf_trainer.py: the table that it makes of its rounds. The rounds themselves are replaced, as they take minutes."""

from __future__ import annotations

from typing import Any

import pytest

from scripts.bench import hf_trainer


def test_the_table_has_tokens_a_second_and_the_share_of_the_engine(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def engine(work: str, folder: Any, processes: int, steps: int, environment: Any, options: tuple[str, ...] = ()) -> dict[str, float]:
        return {"samples_per_second": 20.0 if options else 40.0, "samples_per_step": 8.0, "memory": 2.0**31}

    monkeypatch.setattr(hf_trainer, "prepare", lambda *unused: {})
    monkeypatch.setattr(hf_trainer, "engine_round", engine)
    monkeypatch.setattr(hf_trainer, "trainer_round", lambda *told: {"samples_per_second": 10.0 + told[5] * 5, "memory": 2.0**30})
    monkeypatch.setattr(hf_trainer, "tokens_of_a_sample", lambda *unused: 100.0)
    monkeypatch.setenv("VITA_OUT", "")
    hf_trainer.measure("mixture", rounds=2, steps=1)
    assert capsys.readouterr().out.splitlines()[2:] == [
        "| built-in engine | 4,000, 4,000 | 1.00 | 2.00 |",
        "| --engine hf, plain | 2,000, 2,000 | 0.50 | 2.00 |",
        "| Trainer, padded, batches of 8 | 1,000, 1,000 | 0.25 | 1.00 |",
        "| Trainer, group_by_length, batches of 8 | 1,500, 1,500 | 0.38 | 1.00 |",
    ]
