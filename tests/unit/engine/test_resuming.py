"""A run that goes on with other settings, or from an earlier step: what is kept, what is said, and what the history notes."""

from __future__ import annotations

import errno
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from mindspeed_vita.checkpoint import lineage
from mindspeed_vita.checkpoint.native import atomic, room, shards
from mindspeed_vita.checkpoint.native import checkpoint as native
from mindspeed_vita.engine.loop import train
from mindspeed_vita.engine.resuming import Resume

CHANGES = Resume(with_changes=True)


@pytest.fixture(scope="module")
def saved(tiny, tmp_path_factory) -> Path:
    """Steps 3 and 6 of a run in fp32."""
    directory = tmp_path_factory.mktemp("saved")
    train(tiny.recipe(directory, checkpoint={"save_every": 3}), stop_at_step=6)
    return directory


@pytest.fixture
def run(saved, tmp_path) -> Path:
    """A copy of it."""
    return shutil.copytree(saved, tmp_path / "run")


def optimizer(step: Path) -> dict[str, torch.Tensor]:
    reader = shards.Reader(step / "optimizer")
    return {key: reader.tensor(key) for key in reader.keys()}


def test_a_changed_setting_is_refused_with_advice_that_works(tiny, run, curve, capfd):
    changed = tiny.recipe(run, train={"lr": 1e-3, "weight_decay": 0.1, "global_batch": 2}, checkpoint={"save_every": 3})
    with pytest.raises(ValueError, match=r"train.lr: 0.01 there, 0.001 here; .* add --resume-with-changes to go on with the new ones"):
        train(changed)
    before = curve(run)
    train(changed, stop_at_step=8, resume=CHANGES)
    assert curve(run)[:6] == before and curve(run, "packs")[5:] == [24, 26, 28], "two packs a step, from the pack after the last"
    told = capfd.readouterr().err
    assert "train.lr was 0.01 and is 0.001 now" in told and f"is {curve(run, 'lr')[6]:.2e} at step 7" in told
    assert curve(run, "lr")[6] < curve(run, "lr")[5] / 2
    (change,) = lineage.of_step(native.find(run)).changes
    assert change.step == 6
    assert {key: tuple(both) for key, both in change.settings.items()} == {
        "train.global_batch": (4, 2),
        "train.lr": (0.01, 0.001),
        "train.weight_decay": (0.0, 0.1),
    }
    train(changed, stop_at_step=9)  # what was changed once is not asked for again


def test_without_a_change_the_flag_changes_nothing(tiny, saved, run, curve, tmp_path):
    train(tiny.recipe(run), stop_at_step=8, resume=CHANGES)
    shutil.copytree(saved, tmp_path / "plain")
    train(tiny.recipe(tmp_path / "plain"), stop_at_step=8)
    assert curve(run) == curve(tmp_path / "plain")


def test_moments_and_exact_weights_survive_a_change_of_precision(tiny, run):
    still = {"lr": 0.0, "min_lr": 0.0, "beta1": 0.0, "beta2": 0.0}  # a step that moves nothing
    before = native.read_full_weights(run)[0]
    train(tiny.recipe(run, train={**still, "precision": "bf16"}), stop_at_step=7, resume=CHANGES)
    held, was = optimizer(native.find(run)), optimizer(run / "step_0000006")
    trained = [key.removeprefix("exp_avg.") for key in was if key.startswith("exp_avg.")]
    assert trained and all(torch.equal(held[f"param.{name}"], before[name]) for name in trained), "fp32 weights, not rounded ones"
    assert native.read_full_weights(run)[0][trained[0]].dtype == torch.bfloat16
    train(tiny.recipe(run, train={**still, "precision": "fp32"}), stop_at_step=8, resume=CHANGES)
    after = native.read_full_weights(run)[0]
    assert all(torch.equal(after[name], before[name]) for name in trained)


def test_adam_goes_on_with_its_moments(tiny, run, monkeypatch):
    from mindspeed_vita.checkpoint.native import optimizer_state

    seen = {}
    load = optimizer_state.load

    def spy(optimizer, *arguments, **more):
        load(optimizer, *arguments, **more)
        seen.update(enumerate(optimizer.optimizer.state.values()))

    monkeypatch.setattr(optimizer_state, "load", spy)
    train(tiny.recipe(run, train={"precision": "bf16"}), stop_at_step=6, resume=CHANGES)
    assert seen and all(state["step"] == 6 and state["exp_avg_sq"].abs().sum() > 0 for state in seen.values())


def test_what_changes_the_model_or_the_order_of_packs_is_refused_all_the_same(tiny, run, tmp_path):
    with pytest.raises(ValueError, match=r"\(train.modules: .*\); restore them to resume, or start a run in another"):
        train(tiny.recipe(run, train={"modules": ["language"], "lr": 1e-3}), resume=CHANGES)
    even = {"even_steps": 2}
    train(tiny.recipe(tmp_path / "even", train=even), stop_at_step=2)
    with pytest.raises(ValueError, match="train.global_batch cannot change with train.even_steps=2"):
        train(tiny.recipe(tmp_path / "even", train={**even, "global_batch": 2}), resume=CHANGES)


def test_a_step_that_a_kill_between_two_renames_took_the_name_of_is_continued_from(tiny, run, capfd):
    (run / "step_0000006").rename(run / ".replaced-step_0000006")
    (run / ".removing-step_0000001").mkdir()
    train(tiny.recipe(run), stop_at_step=7)
    assert f"continuing from {run / 'step_0000006'}" in capfd.readouterr().err
    assert sorted(path.name for path in run.glob("*step_*")) == ["step_0000006", "step_0000007"]


def test_a_damaged_newest_step_is_left_for_the_one_before(tiny, saved, run, curve):
    recipe = tiny.recipe(run, checkpoint={"save_every": 3, "keep": 0})
    path = next((run / "step_0000006" / "weights").iterdir())
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)
    command = r"\(vita train RECIPE --resume-from step_0000003\)"
    advice = r"the newest one before it is \S+step_0000003: name that, or continue the run from it " + command
    with pytest.raises(atomic.DamagedCheckpoint, match=advice):
        train(recipe)
    train(recipe, stop_at_step=5, resume=Resume(step="step_0000003"))
    assert curve(run) == curve(saved)[:5]
    assert (run / "aside-step_0000006").is_dir() and native.find(run).name == "step_0000005"
    train(recipe, stop_at_step=6)
    train(recipe, stop_at_step=4, resume=Resume(step="3"))
    assert sorted(path.name for path in run.glob("aside-*")) == ["aside-step_0000005", "aside-step_0000006", "aside-step_0000006.2"]
    with pytest.raises(ValueError, match=r"--resume-from 7: .* holds no whole step_0000007; it has step_0000003, step_0000004"):
        train(recipe, resume=Resume(step="7"))


@pytest.mark.parametrize("fault", ["no recipe", "bad sector"])
def test_a_newest_step_that_cannot_be_read_offers_the_one_before(fault, tiny, run, monkeypatch):
    newest = run / atomic.step_name(6)
    if fault == "no recipe":
        (newest / "recipe.json").unlink()
    else:
        checksum_of = atomic.checksum_of

        def read(path: Path, *kind: str) -> str:
            if newest / "weights" in path.parents:
                raise OSError(errno.EIO, "Input/output error", str(path))
            return checksum_of(path, *kind)

        monkeypatch.setattr(atomic, "checksum_of", read)
    with pytest.raises(atomic.DamagedCheckpoint, match=r"cannot be read \(.*vita train RECIPE --resume-from step_0000003"):
        train(tiny.recipe(run))
    assert train(tiny.recipe(run), stop_at_step=4, resume=Resume(step="step_0000003")).step == 4


def test_a_save_that_was_killed_does_not_take_the_room_of_the_next_one(tiny, run, monkeypatch):
    """The disk holds three steps and a half, and has two steps and the half of one that a killed process was writing."""

    def used(folder: Path) -> int:
        return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())

    one = used(run / atomic.step_name(6))
    half = run / ".writing-step_0000007" / "weights" / "rank_00000.safetensors"
    half.parent.mkdir(parents=True)
    half.write_bytes(bytes(one * 6 // 10))
    whole = used(run) - half.stat().st_size + one * 15 // 10

    def free(place: Any) -> SimpleNamespace:
        return SimpleNamespace(free=whole - used(run))

    monkeypatch.setattr(room, "_SMALL_FILES", 0)
    monkeypatch.setattr(room.shutil, "disk_usage", free)
    assert train(tiny.recipe(run), stop_at_step=7).checkpoint == run / atomic.step_name(7)
