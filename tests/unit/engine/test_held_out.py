"""Held-out loss in a run: what is measured, that it leaves no trace, restarts, early stop, the best step, the gate, bad input."""

from __future__ import annotations

import json
import shutil
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from mindspeed_vita.checkpoint.native import atomic
from mindspeed_vita.checkpoint.native import checkpoint as native
from mindspeed_vita.cli.main import main
from mindspeed_vita.config import recipe_from_dict
from mindspeed_vita.engine import held_out
from mindspeed_vita.engine.loop import train
from mindspeed_vita.engine.step import Stepper

STEPS = 6
LOSS = "eval/loss"
FROZEN = {"lr": 0.0, "min_lr": 0.0}
"""Every step has the weights of the first."""


@pytest.fixture
def recipe(tiny):
    """recipe(folder, eval={...}, train={...}): six steps, measured at every second one."""

    def make(folder: Path, **sections: Any):
        sections["eval"] = {"mixture": tiny.held_out, "every": 2, **sections.get("eval", {})}
        sections["train"] = {"steps": STEPS, **sections.get("train", {})}
        return tiny.recipe(folder, **sections)

    return make


@pytest.fixture(scope="module")
def plain(tiny, tmp_path_factory) -> Path:
    """The run without evaluations."""
    directory = tmp_path_factory.mktemp("plain")
    train(tiny.recipe(directory, train={"steps": STEPS, "recompute": "full"}))
    return directory


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def steps(folder: Path, key: str = LOSS) -> list[int]:
    return [line["step"] for line in lines(folder) if key in line]


def assert_same_run(found: Path, expected: Path) -> None:
    """Every number of training, the weights and the random states are equal bit for bit."""
    for key in ("loss", "grad_norm", "supervised", "samples", "lr", "packs"):
        ours, theirs = ([line[key] for line in lines(folder) if key in line] for folder in (found, expected))
        assert ours == theirs, key
    ours, theirs = (native.read_full_weights(folder)[0] for folder in (found, expected))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    layout = native.load_state(native.find(found)).layout
    ours, theirs = (native.load_rng(native.find(folder), layout) for folder in (found, expected))
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.parametrize("workers", [0, 1])
def test_training_is_bit_for_bit_what_it_is_without_it(recipe, plain, tmp_path, monkeypatch, workers):
    """Also where a module draws random numbers while it is measured, under recomputation, and over a restart."""
    table = held_out.score_table

    def drawing(*arguments):
        torch.rand(7)
        return table(*arguments)

    run = Stepper.run

    def trained(self, *arguments):
        assert all(module.training for module in self.model.modules()), "a step in evaluation mode"
        return run(self, *arguments)

    monkeypatch.setattr(held_out, "score_table", drawing)
    monkeypatch.setattr(Stepper, "run", trained)
    made = recipe(tmp_path, data={"num_workers": workers}, train={"recompute": "full"})
    train(made, stop_at_step=3)
    train(made)
    assert_same_run(tmp_path, plain)
    assert steps(tmp_path) == [0, 2, 4, 6]


def test_a_restart_has_the_held_out_losses_of_an_unbroken_run(recipe, tmp_path):
    whole = recipe(tmp_path / "whole")
    train(whole)
    broken = recipe(tmp_path / "broken", checkpoint={"save_every": 3})
    train(broken, stop_at_step=2)  # step 2 is measured, saved, and not measured again
    train(broken, stop_at_step=5)
    for path in (tmp_path / "broken" / "step_0000005").rglob("*"):
        if path.is_file():
            path.unlink()  # steps 4 and 5 are trained and measured again
    result = train(broken)
    keys = [LOSS, "eval/accuracy", "eval/loss/seen", "eval/accuracy/counted", "eval/data"]
    first, second = ([[line[key] for key in keys] for line in lines(tmp_path / name) if LOSS in line] for name in ("whole", "broken"))
    assert first == second and steps(tmp_path / "broken") == [0, 2, 4, 6]
    assert [step for step, _ in result.held_out] == [0, 2, 4, 6]


def test_a_step_that_was_saved_unmeasured_is_measured_when_the_run_goes_on(tiny, recipe, tmp_path):
    train(tiny.recipe(tmp_path, train={"steps": STEPS}), stop_at_step=4)
    train(recipe(tmp_path))
    assert steps(tmp_path) == [4, 6]
    (tmp_path / "metrics.jsonl").unlink()
    assert train(recipe(tmp_path)).held_out[0][0] == 6, "a finished run is measured too"


def test_it_is_training_s_loss_over_the_same_packs_each_time(tiny, recipe, tmp_path, curve):
    measured = train(recipe(tmp_path / "measured", train=FROZEN))
    losses = [loss for _, loss in measured.held_out]
    assert len(losses) == 4 and len(set(losses)) == 1
    found = next(line for line in lines(tmp_path / "measured") if LOSS in line)
    packs = int(found["eval/data"].partition("-")[2])
    # training on those packs, one a step, with weights that stay: the seed of both plans is the same
    trained = tiny.recipe(tmp_path / "trained", data={"mixture": tiny.held_out}, train={"steps": packs, "global_batch": 1, **FROZEN})
    train(trained)
    counts, steps_ = curve(tmp_path / "trained", "supervised"), curve(tmp_path / "trained")
    assert sum(counts) == found["eval/tokens"]
    assert losses[0] == pytest.approx(sum(count * loss for count, loss in zip(counts, steps_)) / sum(counts), rel=1e-6)
    shares = {name: [found[f"eval/{what}/{name}"] for what in ("loss", "accuracy")] for name in ("seen", "counted")}
    low, high = sorted(loss for loss, _ in shares.values())
    assert low < losses[0] < high, "the loss of all is between those of the sources"


def test_accuracy_counts_the_tokens_that_have_the_highest_logit(recipe, tmp_path, monkeypatch):
    from mindspeed_vita.parallel.lm_head import LanguageHead

    right, count = 0, 0
    hits = LanguageHead.hits

    def compared(self, hidden, weight, labels, supervised):
        nonlocal right, count
        found = hits(self, hidden, weight, labels, supervised)
        best = self.logits(hidden, weight, supervised).argmax(-1)
        right, count = right + int((best == labels[supervised]).sum()), count + len(supervised)
        return found

    train(recipe(tmp_path), stop_at_step=4)
    monkeypatch.setattr(LanguageHead, "hits", compared)
    train(recipe(tmp_path))
    last = lines(tmp_path)[-1]
    assert last["eval/accuracy"] == pytest.approx(right / count) and 0 < right < count == last["eval/tokens"]


def test_packs_that_do_not_fill_a_round_change_nothing(recipe, tmp_path):
    """Ten packs in rounds of four: the last round is filled up with packs whose labels are masked."""
    found = [train(recipe(tmp_path / str(batch), train={**FROZEN, "global_batch": batch, "steps": 2})) for batch in (4, 1)]
    assert found[0].held_out[0][1] == pytest.approx(found[1].held_out[0][1], rel=1e-6)
    few = train(recipe(tmp_path / "few", eval={"packs": 3}, train={**FROZEN, "steps": 2}))
    assert few.held_out[0][1] != found[0].held_out[0][1]
    assert lines(tmp_path / "few")[0]["eval/tokens"] < lines(tmp_path / "4")[0]["eval/tokens"]


def test_the_run_ends_where_the_loss_stops_falling_and_stays_ended(recipe, tmp_path, curve):
    made = recipe(tmp_path, eval={"patience": 2}, train={**FROZEN, "steps": 20})
    result = train(made)
    assert (result.step, result.stopped_early, result.best, result.checkpoint.name) == (6, True, 2, "step_0000006")
    again = train(made)
    assert (again.step, again.stopped_early, len(curve(tmp_path))) == (6, True, 6)
    assert train(recipe(tmp_path, eval={"patience": 3}, train={**FROZEN, "steps": 20})).step == 8


def test_the_best_step_is_saved_and_not_pruned(recipe, tmp_path, capfd):
    made = recipe(tmp_path, eval={"keep_best": True}, train=FROZEN, checkpoint={"keep": 1, "save_every": 3})
    train(made)
    assert [path.name for path in atomic.complete_steps(tmp_path)] == ["step_0000002", "step_0000006"]
    assert atomic.best_step(tmp_path) == tmp_path / "step_0000002"
    assert json.loads((tmp_path / "best.json").read_text())["step"] == 2
    train(recipe(tmp_path, eval={"keep_best": True}, train=FROZEN, checkpoint={"keep": 1}))
    assert "was kept as the best step" not in capfd.readouterr().err
    shutil.copytree(tmp_path, other := tmp_path.with_name("other packs"))
    train(recipe(tmp_path, train=FROZEN, checkpoint={"keep": 1}))
    assert not (tmp_path / "best.json").exists(), "without the setting nothing is spared"
    said = f"WARNING: {tmp_path / 'step_0000002'} was kept as the best step and is no longer: eval.keep_best is false"
    assert said in capfd.readouterr().err
    train(recipe(other, eval={"keep_best": True, "packs": 2}, train={**FROZEN, "steps": 7}, checkpoint={"keep": 1}))
    said = f"WARNING: {other / 'step_0000002'} was kept as the best step and is no longer: these held-out packs have"
    assert said in capfd.readouterr().err


def test_a_kill_between_naming_and_saving_a_new_best_step_leaves_the_old_one(recipe, tmp_path, monkeypatch, curve):
    """Step 3 is published behind training's back when step 4 has been named. Then the process ends, and its user prunes."""
    made = recipe(tmp_path, eval={"keep_best": True}, checkpoint={"keep": 1, "save_every": 3, "background": True})
    named, publish, mark, start = threading.Event(), atomic.publish, atomic.mark_best, native.start_save

    def late(temp: Path, final: Path, sums: Any) -> None:
        assert final.name != "step_0000003" or named.wait(60)
        publish(temp, final, sums)

    def marked(directory: Path, step: Any, *loss: float) -> None:
        mark(directory, step, *loss)
        if step == 4:
            named.set()

    def killed(directory: Path, state: native.TrainState, **arguments: Any) -> Any:
        if state.step == 4:
            raise KeyboardInterrupt
        return start(directory, state, **arguments)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(atomic, "publish", late)
        patched.setattr(atomic, "mark_best", marked)
        patched.setattr(native, "start_save", killed)
        train(made)
    assert named.is_set() and atomic.best_step(tmp_path) == tmp_path / "step_0000004", "the loss fell"
    assert main(["checkpoint", "prune", str(tmp_path), "--keep", "1"]) == 0
    assert [path.name for path in atomic.complete_steps(tmp_path)] == ["step_0000002", "step_0000003"]
    result = train(made)
    assert atomic.kept_best(tmp_path) == tmp_path / f"step_{result.best:07d}" and len(curve(tmp_path)) == STEPS


def test_a_gate_holds_the_next_stage_back_until_the_bound_fits(tiny, recipe, tmp_path):
    first, following = tmp_path / "first", tiny.recipe(tmp_path / "next", checkpoint={"init_from": str(tmp_path / "first")})
    held = train(recipe(first, eval={"gate": 0.5}))
    assert held.gate is not None and held.gate.held and held.gate.measured == held.held_out[-1][1]
    with pytest.raises(ValueError, match=r"step_0000006 is held back: gate held_out_loss: measured 4\.\d+, passes with at most 0.5"):
        train(following, stop_at_step=1)
    assert not native.latest(tmp_path / "next")
    passed = train(recipe(first, eval={"gate": 50.0}))  # nothing is trained, and the end is judged again
    assert passed.gate is not None and not passed.gate.held
    assert train(following, stop_at_step=1).step == 1


def test_an_unfinished_run_has_no_gate(recipe, tmp_path):
    assert train(recipe(tmp_path, eval={"gate": 0.5}), stop_at_step=4).gate is None
    assert not (tmp_path / "gates").exists()


def test_rows_that_are_trained_on_are_named(tiny, tmp_path, capfd):
    train(tiny.recipe(tmp_path, eval={"mixture": tiny.two_sources, "packs": 2}, train={"steps": 1}))
    err = capfd.readouterr().err
    assert "held-out rows are in the training data too, the first is" in err and "WARNING" in err
    train(tiny.recipe(tmp_path / "other", eval={"mixture": tiny.held_out, "packs": 2}, train={"steps": 1}))
    assert "WARNING" not in capfd.readouterr().err


def test_a_picture_that_does_not_decode_is_left_out_and_written_down(tiny, recipe, tmp_path):
    train(recipe(tmp_path / "whole", train={"steps": 1, **FROZEN}))
    picture = tiny.folder / "green1.png"
    content = picture.read_bytes()
    try:
        picture.write_bytes(content[:60])  # its header is whole
        train(recipe(tmp_path / "lost", train={"steps": 1, **FROZEN}))
    finally:
        picture.write_bytes(content)
    whole, lost = (next(line for line in lines(tmp_path / name) if LOSS in line) for name in ("whole", "lost"))
    assert (whole["eval/failed"], lost["eval/failed"]) == (0, 1) and lost["eval/tokens"] < whole["eval/tokens"]
    noted = [json.loads(line) for line in (tmp_path / "lost" / "quarantine.jsonl").read_text().splitlines()]
    assert [entry["path"] for entry in noted if entry["source"] == "seen"] == ["green1.png"], "once, however often it is measured"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mixture": "nowhere.yaml"}, r"held-out data: mixture 'nowhere.yaml' cannot be read .*Correct eval.mixture$"),
        ({"packs": 99}, r"eval.packs=99, but the held-out mixture .*held_out.yaml gives 10 packs of 128 tokens; set eval.packs to 10 or"),
    ],
)
def test_held_out_data_that_does_not_fit_is_refused_before_a_step(recipe, tmp_path, settings, message):
    with pytest.raises(ValueError, match=message):
        train(recipe(tmp_path, eval=settings))
    assert not (tmp_path / "metrics.jsonl").exists()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mixture": "m.yaml", "every": 0}, "eval.every"),
        ({"mixture": "m.yaml", "packs": -1}, "eval.packs"),
        ({"patience": 3}, "eval.patience=3 without eval.mixture: no held-out loss is measured"),
        ({"keep_best": True}, "eval.keep_best=true without eval.mixture"),
        ({"gate": 1.5}, "eval.gate=1.5 without eval.mixture"),
    ],
)
def test_settings_without_sense_are_refused(settings, message):
    from mindspeed_vita.config import validate

    with pytest.raises(ValueError, match=message):
        validate(recipe_from_dict({"eval": settings}))


def test_held_out_packs_change_places_with_no_others():
    from mindspeed_vita.config import recipe_from_dict
    from mindspeed_vita.engine.held_out_packs import held_out_recipe

    assert held_out_recipe(recipe_from_dict({"train": {"even_steps": 8}, "eval": {"mixture": "held_out.yaml"}})).train.even_steps == 0
