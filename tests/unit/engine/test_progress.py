"""Plain lines of a run: every so many steps, and after a while in any case."""

from __future__ import annotations

from mindspeed_vita.engine import progress
from mindspeed_vita.engine.progress import Progress


def test_slow_steps_are_shown_before_their_turn(monkeypatch, capsys):
    now = 100.0
    monkeypatch.setattr(progress.time, "monotonic", lambda: now)
    shown = Progress("run", steps=100, done=0, bar=False, every=10)
    for step in range(1, 13):
        now += 1.0 if step != 6 else 20.0
        shown.update({"step": step, "loss": 1.0, "lr": 1e-3, "seconds": 1.0, "tokens_per_second": 5.0})
    lines = capsys.readouterr().err.splitlines()
    assert [line.split()[2] for line in lines] == ["1/100", "6/100", "10/100"]


def test_a_line_shows_the_largest_losses_by_source(capsys):
    shown = Progress("run", steps=1, done=0, bar=False, every=1)
    report = {"loss/pets": 1.0, "loss/text": 3.0, "margin": 0.5, "loss/charts": 2.0, "loss/films": 0.25}
    shown.update({"step": 1, "loss": 1.5, "lr": 1e-3, "seconds": 1.0, "tokens_per_second": 5.0}, report)
    assert "loss 1.5000 (text 3.000, charts 2.000, pets 1.000, 2 more) lr" in capsys.readouterr().err
