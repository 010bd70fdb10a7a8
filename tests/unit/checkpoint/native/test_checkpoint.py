"""Steps are visible only when whole, damaged ones are refused, a full disk loses nothing, and weights come back exactly."""

from __future__ import annotations

import errno
import resource
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from mindspeed_vita.checkpoint.native import atomic, shards
from mindspeed_vita.checkpoint.native import checkpoint as native
from mindspeed_vita.config import Recipe, recipe_from_dict
from mindspeed_vita.engine.optimizer import build_optimizer, wrap_model
from mindspeed_vita.engine.session import init_distributed, shutdown
from mindspeed_vita.platform import get_platform

MODEL = {
    "vision": {"tile_size": 28, "patch_size": 7, "hidden_size": 32, "num_layers": 2, "num_heads": 2, "ffn_hidden_size": 64},
    "projector": {"hidden_size": 32},
    "language": {"num_layers": 2, "hidden_size": 32, "num_heads": 4, "num_kv_heads": 2, "ffn_hidden_size": 64, "vocab_size": 128},
}
LAYOUT = {"tp": 1, "pp": 1, "cp": 1, "dp": 1}


class Run:
    """A model with its optimizer, as the loop holds them."""

    def __init__(self, **train) -> None:
        self.recipe: Recipe = recipe_from_dict(
            {"model": MODEL, "data": {"seq_length": 64}, "train": {"precision": "fp32", "global_batch": 1, **train}}
        )
        platform = get_platform("cpu")
        self.layout = init_distributed(self.recipe, platform)
        from mindspeed_vita.parallel.build import build_model

        self.model = build_model(self.recipe, self.layout, platform.device)
        self.wrapped = wrap_model(self.model)
        self.optimizer = build_optimizer(self.wrapped, self.recipe, platform)

    def update(self) -> None:
        """An optimizer step on made-up gradients."""
        for number, parameter in enumerate(p for p in self.model.parameters() if p.requires_grad):
            parameter.main_grad.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number)))
        self.optimizer.step()

    def save(self, folder: Path, step: int, keep: int = 0) -> Path:
        return self.start_save(folder, step, keep=keep).finish()

    def start_save(self, folder: Path, step: int, **arguments: Any) -> native.StepWriter:
        state = native.TrainState(step=step, packs=step, fingerprint="a" * 64, failed_samples=(7,), layout=LAYOUT)
        told = {"rng": {"cpu": torch.get_rng_state()}, "keep": 0, **arguments}
        return native.start_save(folder, state, model=self.model, optimizer=self.optimizer, recipe=self.recipe, **told)

    def load(self, folder: Path, fingerprint: str = "a" * 64) -> native.TrainState:
        return native.load(folder, model=self.model, optimizer=self.optimizer, recipe=self.recipe, fingerprint=fingerprint)

    def weights(self) -> dict[str, torch.Tensor]:
        return {name: parameter.detach().clone() for name, parameter in self.model.named_parameters()}


@pytest.fixture(scope="module", autouse=True)
def groups():
    yield
    shutdown()


@pytest.fixture
def run() -> Run:
    return Run()


def assert_equal(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> None:
    assert left.keys() == right.keys()
    for name in left:
        assert torch.equal(left[name], right[name]), name


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_resumed_optimizer_makes_the_same_next_update(tmp_path, precision):
    first = Run(precision=precision)
    first.update()
    step = first.save(tmp_path, 1)
    first.update()
    second = Run(precision=precision)
    state = second.load(step)
    second.update()
    assert_equal(first.weights(), second.weights())
    assert (state.step, state.packs, state.failed_samples) == (1, 1, (7,))


def test_a_run_that_trains_one_module_resumes(tmp_path):
    first = Run(modules=["projector"])
    first.update()
    step = first.save(tmp_path, 1)
    first.update()
    second = Run(modules=["projector"])
    second.load(step)
    second.update()
    assert_equal(first.weights(), second.weights())


def test_full_weights_are_read_and_written_without_a_model(tmp_path, run):
    run.update()
    tensors, recipe = native.read_full_weights(run.save(tmp_path / "a", 1))
    assert_equal(tensors, run.weights())
    assert recipe["model"]["language"]["hidden_size"] == 32
    written = native.save_full_weights(tmp_path / "b", tensors, run.recipe)
    other = Run()
    assert native.load_weights(tmp_path / "b", other.model, config=run.recipe.model) == written
    assert_equal(other.weights(), run.weights())


def test_weights_only_steps_start_a_run_but_do_not_resume_one(tmp_path, run):
    step = native.save_weights(tmp_path, run.model, run.recipe)
    assert_equal(native.read_full_weights(tmp_path)[0], run.weights())
    with pytest.raises(ValueError, match="weights only.*checkpoint.init_from"):
        run.load(step)


def test_weights_change_precision_on_the_way(tmp_path, run):
    native.save_weights(tmp_path, run.model, run.recipe)
    other = Run(precision="bf16")
    native.load_weights(tmp_path, other.model)
    assert_equal(other.weights(), {name: tensor.bfloat16() for name, tensor in run.weights().items()})


def test_only_whole_steps_are_seen(tmp_path, run):
    step = run.save(tmp_path, 1)
    (tmp_path / "step_0000002" / "weights").mkdir(parents=True)
    (tmp_path / ".writing-step_0000003").mkdir()
    assert native.latest(tmp_path) == step
    assert native.latest(tmp_path / "nothing") is None
    with pytest.raises(ValueError, match="holds no whole checkpoint"):
        native.find(tmp_path / "step_0000002")
    trainer = tmp_path / "of_hf_engine"
    (trainer / "export").mkdir(parents=True)
    (trainer / "export" / "config.json").touch()
    with pytest.raises(ValueError, match=r"holds no whole checkpoint; .* run of --engine hf, whose weights are in .*of_hf_engine/export"):
        native.find(trainer)
    with pytest.raises(ValueError, match=r"is a Hugging Face folder, .* vita convert --from .*export --to native --output DIR makes one"):
        native.find(trainer / "export")


def test_a_damaged_step_is_refused_and_the_one_before_offered(tmp_path, run):
    run.save(tmp_path, 1)
    step = run.save(tmp_path, 2)
    path = step / "optimizer" / "rank_00000.safetensors"
    content = bytearray(path.read_bytes())
    content[-9] ^= 1
    path.write_bytes(content)
    told = r"optimizer/rank_00000.safetensors does not match.*the newest one before it is .*step_0000001: name that"
    with pytest.raises(atomic.DamagedCheckpoint, match=told):
        run.load(step)
    native.load_weights(tmp_path / "step_0000001", run.model)


def test_a_missing_or_cut_off_file_is_damage(tmp_path, run):
    step = run.save(tmp_path, 1)
    path = step / "weights" / "rank_00000.safetensors"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(atomic.DamagedCheckpoint, match="no earlier step is left"):
        native.load_weights(step, run.model)
    path.unlink()
    with pytest.raises(atomic.DamagedCheckpoint, match="weights/rank_00000.safetensors is missing"):
        native.read_full_weights(step)


class Gate:
    """Stands in for shards.write, and writes nothing before it is opened."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.opened, self.reached, self.write = threading.Event(), threading.Event(), shards.write
        monkeypatch.setattr(shards, "write", self)

    def __call__(self, path: Path, pieces: Any) -> Any:
        self.reached.set()
        assert self.opened.wait(120), "nobody opened the gate: whoever should do that waits for the writer"
        return self.write(path, pieces)


class LateCopies:
    """Copies to the host that hold nothing before they are waited for."""

    def __init__(self, device: torch.device) -> None:
        self.under_way: list[tuple[torch.Tensor, torch.Tensor]] = []

    def to_host(self, tensor: torch.Tensor) -> torch.Tensor:
        self.under_way.append((torch.full_like(tensor, torch.nan), tensor))
        return self.under_way[-1][0]

    def arrive(self) -> None:
        for host, tensor in self.under_way:
            host.copy_(tensor)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_background_save_holds_the_moment_it_was_asked_for(tmp_path, monkeypatch, precision):
    run = Run(precision=precision)
    run.update()
    expected, before = run.save(tmp_path / "expected", 2), run.save(tmp_path / "run", 1)
    gate = Gate(monkeypatch)
    monkeypatch.setattr(native, "host_copies", LateCopies)
    writer = run.start_save(tmp_path / "run", 2, background=True)
    assert gate.reached.wait(120) and not writer.written()
    run.update()  # weights and moments change in their place
    # what a kill at this moment leaves
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == [".writing-step_0000002", before.name]
    assert native.latest(tmp_path / "run") == before and native.find(tmp_path / "run") == before
    gate.opened.set()
    step = writer.finish()
    assert writer.written() and native.latest(tmp_path / "run") == step
    for part in ("weights", "optimizer"):
        ours, theirs = (shards.Reader(folder / part) for folder in (step, expected))
        assert_equal({key: ours.tensor(key) for key in ours.keys()}, {key: theirs.tensor(key) for key in theirs.keys()})


def test_a_full_disk_behind_training_is_the_same_error(tmp_path, run, monkeypatch):
    step = run.save(tmp_path, 1)

    def full(path: Path, pieces: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(shards, "write", full)
    writer = run.start_save(tmp_path, 2, background=True)
    with pytest.raises(native.SaveFailed, match=r"No space left on device; free space.*newest: step_0000001"):
        writer.finish()
    assert list(tmp_path.iterdir()) == [step]


def test_a_full_disk_is_one_error_and_leaves_earlier_steps(tmp_path, run, monkeypatch):
    step = run.save(tmp_path, 1)
    before = native.read_full_weights(step)[0]
    run.update()
    write = shards.write

    def full(path: Path, pieces):
        if path.parent.name == "optimizer":
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(path, pieces)

    monkeypatch.setattr(shards, "write", full)
    with pytest.raises(native.SaveFailed, match=r"No space left on device; free space.*newest: step_0000001"):
        run.save(tmp_path, 2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step_0000001"]
    assert_equal(native.read_full_weights(step)[0], before)


def test_a_write_that_the_system_refuses_leaves_earlier_steps(tmp_path, run):
    run.save(tmp_path, 1)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        with pytest.raises(native.SaveFailed, match="File too large"):
            run.save(tmp_path, 2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step_0000001"]


def test_a_disk_without_room_is_refused_before_anything_is_written(tmp_path, run, monkeypatch):
    from types import SimpleNamespace

    from mindspeed_vita.checkpoint.native import room

    run.save(tmp_path, 1)
    monkeypatch.setattr(room.shutil, "disk_usage", lambda place: SimpleNamespace(free=4_150_000))
    monkeypatch.setattr(shards, "write", lambda *arguments: pytest.fail("written"))
    message = rf"cannot save into .*: step 2 needs \d+\.\d MB, the disk of {tmp_path} has 4\.2 MB free; free space .*newest: step_0000001"
    with pytest.raises(native.SaveFailed, match=message):
        run.save(tmp_path, 2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step_0000001"]


def test_the_newest_steps_are_kept(tmp_path, run):
    (tmp_path / ".writing-step_0000009").mkdir()
    for step in (1, 2, 3):
        run.save(tmp_path, step, keep=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step_0000002", "step_0000003"]


def test_a_step_can_be_written_again(tmp_path, run):
    run.save(tmp_path, 1)
    run.update()
    step = run.save(tmp_path, 1)
    assert_equal(native.read_full_weights(step)[0], run.weights())
    assert [path.name for path in tmp_path.iterdir()] == ["step_0000001"]


def test_another_architecture_is_named_key_by_key(tmp_path, run):
    step = run.save(tmp_path, 1)
    model = run.recipe.model
    other = replace(model, language=replace(model.language, num_layers=3), vision=replace(model.vision, hidden_size=64), lm_head="original")
    with pytest.raises(ValueError, match=r"language.num_layers: 2 there, 3 here; model.vision.hidden_size: 32 there, 64 here\)"):
        native.load_weights(step, run.model, config=other)


def test_other_data_is_refused(tmp_path, run):
    with pytest.raises(ValueError, match="other data.*tokenizer.*init_from"):
        run.load(run.save(tmp_path, 1), fingerprint="b" * 64)


def test_random_states_come_back_for_the_same_layout_only(tmp_path, run):
    state = torch.get_rng_state()
    step = run.save(tmp_path, 1)
    assert torch.equal(native.load_rng(step, LAYOUT)["cpu"], state)
    assert native.load_rng(step, {**LAYOUT, "dp": 2}) == {}
