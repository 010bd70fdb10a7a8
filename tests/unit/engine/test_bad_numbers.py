"""Steps with bad numbers: the run stops, leaves them out, or goes back and passes over their packs; and a restart changes nothing."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, Callable

import pytest
import torch

from mindspeed_vita.checkpoint.native import checkpoint as native
from mindspeed_vita.config import HealthConfig, recipe_from_dict, validate
from mindspeed_vita.engine import loop
from mindspeed_vita.engine import step as steps
from mindspeed_vita.engine.bad_numbers import BAD_NUMBERS, BadNumbers
from mindspeed_vita.engine.faults import TrainingDiverged
from mindspeed_vita.engine.loop import train

Norms = Callable[[dict[int, float]], None]


@pytest.fixture
def norms(monkeypatch: pytest.MonkeyPatch) -> Norms:
    """Multiplies the gradient norm of the updates of some numbers, counted from 1 from now on."""
    clip = steps.clip_gradients

    def spoil(factors: dict[int, float]) -> None:
        done = [0]

        def spoilt(*arguments: Any) -> tuple[float, torch.Tensor]:
            done[0] += 1
            norm, of_modules = clip(*arguments)
            return norm * factors.get(done[0], 1.0), of_modules

        monkeypatch.setattr(steps, "clip_gradients", spoilt)

    return spoil


def lines(directory: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (directory / BAD_NUMBERS).read_text().splitlines()]


def weights(directory: Path) -> dict[str, torch.Tensor]:
    return native.read_full_weights(directory)[0]


def assert_same(left: Path, right: Path, curve: Any) -> None:
    for key in ("step", "loss", "grad_norm", "packs"):
        assert curve(left, key) == curve(right, key)
    ours, theirs = weights(left), weights(right)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_a_skipped_step_leaves_the_weights_and_a_restart_changes_nothing(tiny, tmp_path, norms, curve):
    health = {"health": {"on_bad_numbers": "skip"}}
    norms({6: math.nan})
    train(tiny.recipe(tmp_path / "straight", **health, checkpoint={"save_every": 1, "keep": 0}), stop_at_step=10)
    saved = [weights(tmp_path / "straight" / f"step_{number:07d}") for number in (5, 6, 7)]
    assert all(torch.equal(saved[0][name], saved[1][name]) for name in saved[0])
    assert not all(torch.equal(saved[1][name], saved[2][name]) for name in saved[0])
    assert curve(tmp_path / "straight", "step") == [1, 2, 3, 4, 5, 7, 8, 9, 10]
    (line,) = lines(tmp_path / "straight")
    assert (line["step"], line["action"], line["why"]) == (6, "skip", "the gradient norm is not finite")
    assert line["grad_norm"] == "nan" and [pack["pack"] for pack in line["packs"]] == [20, 21, 22, 23]
    assert all(pack["samples"] for pack in line["packs"])
    norms({6: math.nan})
    train(tiny.recipe(tmp_path / "stopped", **health), stop_at_step=8)
    norms({})
    train(tiny.recipe(tmp_path / "stopped", **health), stop_at_step=10)  # Adam has counted 7 updates at step 8
    assert_same(tmp_path / "straight", tmp_path / "stopped", curve)
    assert lines(tmp_path / "stopped") == [line]


def test_a_rolled_back_run_passes_over_the_packs_and_a_restart_changes_nothing(tiny, tmp_path, norms, curve, capfd):
    settings = {"health": {"on_bad_numbers": "roll_back"}, "checkpoint": {"save_every": 4}}
    norms({6: math.inf})
    train(tiny.recipe(tmp_path / "straight", **settings), stop_at_step=10)
    assert curve(tmp_path / "straight", "step") == list(range(1, 11))
    assert curve(tmp_path / "straight", "packs") == [4, 8, 12, 16, 28, 32, 36, 40, 44, 48]
    assert "step 6: the gradient norm is not finite (inf); back to" in capfd.readouterr().err
    (line,) = lines(tmp_path / "straight")
    assert (line["step"], line["action"]) == (6, "roll_back")
    assert [pack["pack"] for pack in line["packs"]] == list(range(16, 24)), "those of the good step after the checkpoint go, too"
    norms({6: math.inf})
    train(tiny.recipe(tmp_path / "killed", **settings), stop_at_step=4)  # that is: 4 steps, and step 5 and 6 are lost
    norms({2: math.inf})
    train(tiny.recipe(tmp_path / "killed", **settings), stop_at_step=7)
    norms({})
    train(tiny.recipe(tmp_path / "killed", **settings), stop_at_step=10)
    assert_same(tmp_path / "straight", tmp_path / "killed", curve)
    assert lines(tmp_path / "killed") == [line]
    assert native.load_state(native.find(tmp_path / "killed")).rollbacks == (6,)


def test_a_rollback_gives_signs_of_life_while_it_loads(tiny, tmp_path, norms, monkeypatch):
    beats, during, load = [0], [], native.load

    def beat() -> None:
        beats[0] += 1

    @contextmanager
    def watched(*arguments: Any, **options: Any) -> Iterator[Any]:
        yield lambda: nullcontext(beat)

    def counted(*arguments: Any, **options: Any) -> Any:
        before = beats[0]
        state = load(*arguments, **options)
        during.append(beats[0] - before)
        return state

    monkeypatch.setattr(loop, "watched", watched)
    monkeypatch.setattr(native, "load", counted)
    norms({4: math.inf})
    train(tiny.recipe(tmp_path, health={"on_bad_numbers": "roll_back"}, checkpoint={"save_every": 2}), stop_at_step=4)
    files = sum(path.is_file() for path in (tmp_path / "step_0000002").rglob("*")) - 1  # without the checksums
    tensors = len(native.read_full_weights(tmp_path / "step_0000002")[0])
    assert during and during[0] > files + tensors, "one for each file that is checked, and for each tensor that is read"
    train(tiny.recipe(tmp_path), stop_at_step=5)
    assert during[1:] == [0], "nobody watches the load of a start"


def test_held_out_losses_after_a_rollback_take_the_place_of_those_before(tiny, tmp_path, norms):
    norms({7: math.inf})
    evaluation = {"mixture": tiny.held_out, "every": 2, "packs": 2, "keep_best": True}
    train(tiny.recipe(tmp_path, health={"on_bad_numbers": "roll_back"}, checkpoint={"save_every": 4}, eval=evaluation), stop_at_step=9)
    entries = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [entry["step"] for entry in entries if "eval/loss" in entry] == [0, 2, 4, 6, 8]
    # each evaluation was the best so far, so the step before the bad one was saved: that is where the run went back to
    assert [entry["packs"] for entry in entries if "loss" in entry] == [4, 8, 12, 16, 20, 24, 32, 36, 40]


def test_the_count_of_bad_steps_is_bounded(tiny, tmp_path, norms):
    norms({4: math.nan, 6: math.nan, 7: math.nan})
    recipe = tiny.recipe(tmp_path, health={"on_bad_numbers": "skip", "most_bad_steps": 2}, checkpoint={"save_every": 5})
    message = r"step 7: .* 2 steps within 100 were passed over already .*names its packs; continue .*--resume-with-changes.*raise that"
    with pytest.raises(TrainingDiverged, match=message):
        train(recipe)
    told = lines(tmp_path)
    assert [line["action"] for line in told] == ["skip", "skip", "stop"]
    train(recipe, stop_at_step=8)  # with other numbers, as after a mended file: what ended the run is still known
    assert lines(tmp_path) == [told[0], told[2]]


def test_there_is_no_way_back_without_a_checkpoint(tiny, tmp_path, norms):
    norms({2: math.nan})
    with pytest.raises(TrainingDiverged, match="step 2: .* there is no checkpoint to go back to; .*start again with a lower train.lr"):
        train(tiny.recipe(tmp_path, health={"on_bad_numbers": "roll_back"}))


@pytest.mark.parametrize(
    ("parallel", "train", "advised"),
    [
        ({}, {}, ["train.precision"]),
        ({"ring_gradients": "bf16"}, {"grad_reduce": "bf16"}, ["train.precision", "train.grad_reduce", "parallel.ring_gradients"]),
        ({}, {"precision": "fp32"}, []),
    ],
)
def test_the_advice_can_be_followed(tmp_path, parallel, train, advised):
    content = {"model": {"preset": "tiny"}, "parallel": parallel, "train": train}
    recipe = recipe_from_dict(content)
    validate(recipe, 1)
    numbers = BadNumbers(recipe.health, tmp_path)
    message = numbers.advice(numbers.bad(3, 3, math.nan, 1.0), None, recipe)
    assert "start again with a lower train.lr" in message and re.findall(r"(\S+)=fp32", message) == advised
    folder = tmp_path / "step_0000002"
    going_on = numbers.advice(numbers.bad(3, 3, math.nan, 1.0), folder, recipe)
    assert "(vita train RECIPE train.lr=... --resume-with-changes), or let" in going_on and ") (" not in going_on
    for section, key in (name.split(".") for name in advised):
        content[section] = {**content[section], key: "fp32"}
    validate(recipe_from_dict(content), 1)


def test_a_spike_is_found_and_a_resumed_run_finds_the_same_one(tiny, tmp_path, norms, curve):
    health = {"health": {"on_bad_numbers": "skip", "spike_factor": 10.0, "spike_window": 12}}
    norms({2: 1e4, 10: 1e4})  # too early to know what is usual, and then not
    train(tiny.recipe(tmp_path / "straight", **health), stop_at_step=12)
    (line,) = lines(tmp_path / "straight")
    assert (line["step"], line["why"]) == (10, "the gradient norm is far above the usual")
    assert line["grad_norm"] > 10 * line["usual_grad_norm"]
    norms({2: 1e4})
    train(tiny.recipe(tmp_path / "stopped", **health), stop_at_step=9)
    norms({1: 1e4})
    train(tiny.recipe(tmp_path / "stopped", **health), stop_at_step=12)
    assert lines(tmp_path / "stopped") == [line]
    assert_same(tmp_path / "straight", tmp_path / "stopped", curve)


def test_what_counts_as_bad(tmp_path):
    numbers = BadNumbers(HealthConfig(spike_factor=3.0, spike_window=8), tmp_path)
    for _ in range(8):
        assert numbers.judge(1e6, 1e6) == 0, "nothing is usual yet"
        numbers.good(2.0, 1.0)
    assert [numbers.judge(*pair) for pair in ((5.9, 2.9), (6.1, 1.0), (2.0, 3.1))] == [0, 1, 2]
    assert [numbers.judge(*pair) for pair in ((math.nan, 1.0), (math.inf, 1.0), (2.0, math.nan))] == [3, 3, 4]
    below = BadNumbers(HealthConfig(spike_factor=3.0, spike_window=8), tmp_path)
    for loss in (-2.0, -2.1) * 4:  # of an objective of a plugin
        below.good(loss, 1.0)
    assert [below.judge(loss, 1.0) for loss in (-2.1, -1.9, 2.0, 2.2)] == [0, 0, 0, 1]
    quiet = BadNumbers(HealthConfig(), tmp_path)
    for _ in range(80):
        quiet.good(2.0, 1.0)
    assert quiet.judge(1e30, 1e30) == 0, "spikes are not looked for by default"
