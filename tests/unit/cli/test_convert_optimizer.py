"""`vita convert --optimizer`: moments, fp32 parameters and the run's state go between native and MindSpeed-LLM checkpoints, exactly."""

from __future__ import annotations

import random
import shutil
import zipfile
from argparse import Namespace
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from mindspeed_vita.checkpoint.megatron import write
from mindspeed_vita.checkpoint.megatron.rank_files import SavedLayout, saved_layout
from mindspeed_vita.checkpoint.native import checkpoint as native
from mindspeed_vita.checkpoint.native import shards
from mindspeed_vita.checkpoint.native.full_weights import save_full_weights
from mindspeed_vita.checkpoint.source import SourceOptions, open_source
from mindspeed_vita.checkpoint.training import kinds, open_training, trainable
from mindspeed_vita.cli.main import main
from mindspeed_vita.config import MODULES, ModelConfig, Recipe
from mindspeed_vita.files.tensors import held
from tests.tiny_checkpoint import TINY, random_weights, tiny_recipe, told

STATE = native.TrainState(
    step=7, packs=28, fingerprint="f" * 64, failed_samples=(3, 11), layout={"tp": 2, "pp": 1, "cp": 1, "dp": 4}
)
TIED = replace(TINY, language=replace(TINY.language, tie_embeddings=True, hidden_size=128))
ODD = replace(TINY, language=replace(TINY.language, tie_embeddings=True))
QWEN3 = replace(TINY, language=replace(TINY.language, family="qwen3", head_width=12))


def recipe_of(precision: str = "bf16", model: ModelConfig = TINY, modules: tuple[str, ...] = MODULES) -> Recipe:
    recipe = tiny_recipe(model)
    train = replace(recipe.train, precision=precision, modules=modules, steps=20, global_batch=4, vision_lr_mult=0.1, warmup_fraction=0.15)
    return replace(recipe, train=replace(train, vision_layer_decay=0.9, weight_decay=0.01))


def native_run(folder: Path, recipe: Recipe) -> Path:
    """A step as a run leaves it, with random optimizer tensors."""
    bf16 = recipe.train.precision == "bf16"
    weights = {name: tensor.bfloat16() if bf16 else tensor for name, tensor in random_weights(recipe.model).items()}
    chance = torch.Generator().manual_seed(5)
    optimizer = {
        f"{kind}.{name}": torch.randn(weights[name].shape, generator=chance)
        for kind in kinds(recipe)
        for name in trainable(weights, recipe)
    }
    return save_full_weights(folder, weights, recipe, optimizer=held(optimizer), state=STATE)


def convert(source: Path, to: str, output: Path, *more: str) -> int:
    return main(["convert", "--from", str(source), "--to", to, "--output", str(output), *more])


def assert_same_run(found: Path, expected: Path) -> None:
    for part in ("weights", "optimizer"):
        ours, theirs = (shards.Reader(native.find(folder) / part).whole() for folder in (found, expected))
        assert set(ours) == set(theirs)
        for name in theirs:
            assert torch.equal(ours[name], theirs[name]), name


CASES: dict[str, tuple[str, ModelConfig, tuple[str, ...]]] = {
    "bf16": ("bf16", TINY, MODULES),
    "fp32": ("fp32", TINY, MODULES),
    "tied_bf16": ("bf16", TIED, MODULES),
    "tied_fp32": ("fp32", TIED, MODULES),
    "qwen3": ("bf16", QWEN3, MODULES),
    "projector_bf16": ("bf16", TINY, ("projector",)),
    "projector_fp32": ("fp32", TINY, ("projector",)),
}


@pytest.mark.parametrize(("case", "tp", "pp"), [("bf16", 1, 1), ("fp32", 1, 1), ("bf16", 2, 1), *((case, 2, 2) for case in CASES)])
def test_an_optimizer_goes_there_and_back(tmp_path: Path, case: str, tp: int, pp: int) -> None:
    precision, model, modules = CASES[case]
    native_run(tmp_path / "run", recipe_of(precision, model, modules))
    assert convert(tmp_path / "run", "mindspeed-llm", tmp_path / "ranks", "--optimizer", "--tp", str(tp), "--pp", str(pp)) == 0
    assert (tmp_path / "ranks/latest_checkpointed_iteration.txt").read_text() == "7"
    assert saved_layout(tmp_path / "ranks") == SavedLayout(tp=tp, pp=pp, has_optimizer=True, has_random_state=False)
    assert len(list(tmp_path.rglob("distrib_optim.pt"))) == (tp * pp if precision == "bf16" else 0)
    assert convert(tmp_path / "ranks", "native", tmp_path / "back", "--optimizer") == 0
    assert native.find(tmp_path / "back").name == "step_0000007"
    assert_same_run(tmp_path / "back", tmp_path / "run")
    layout = {"tp": tp, "pp": pp, "cp": 1, "dp": 1}
    assert native.load_state(native.find(tmp_path / "back")) == replace(STATE, layout=layout)


def test_a_shared_table_that_megatron_cannot_place_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    native_run(tmp_path / "run", recipe_of("bf16", ODD))
    assert convert(tmp_path / "run", "mindspeed-llm", tmp_path / "ranks", "--optimizer", "--tp", "2", "--pp", "2") == 2
    assert "word_embeddings.weight, which two pipeline stages share, does not begin at a bucket's border" in capsys.readouterr().err


def ranks_of(folder: Path) -> dict[str, Any]:
    return {str(path.relative_to(folder)): torch.load(path, weights_only=False) for path in sorted(folder.rglob("*.pt"))}


def assert_same(left: Any, right: Any, where: str = "") -> None:
    """Two saved objects, tensors bit for bit."""
    if isinstance(right, torch.Tensor):
        assert torch.equal(left, right) if not where.endswith("/_extra_state") else told(left) == told(right), where
    elif isinstance(right, Namespace):
        assert_same(vars(left), vars(right), where)
    elif isinstance(right, dict):
        assert left.keys() == right.keys(), where
        for key in right:
            assert_same(left[key], right[key], f"{where}/{key}")
    elif isinstance(right, (list, tuple)):
        assert len(left) == len(right), where
        for number, value in enumerate(right):
            assert_same(left[number], value, f"{where}/{number}")
    else:
        assert left == right, where


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_one_layout_of_mindspeed_llm_becomes_another(tmp_path: Path, precision: str) -> None:
    native_run(tmp_path / "run", recipe_of(precision))
    assert convert(tmp_path / "run", "mindspeed-llm", tmp_path / "tp2", "--optimizer", "--tp", "2") == 0
    assert convert(tmp_path / "tp2", "mindspeed-llm", tmp_path / "pp2", "--optimizer", "--pp", "2") == 0
    assert convert(tmp_path / "run", "mindspeed-llm", tmp_path / "straight", "--optimizer", "--pp", "2") == 0
    assert_same(ranks_of(tmp_path / "pp2"), ranks_of(tmp_path / "straight"))


def test_the_state_is_what_megatron_asks_for(tmp_path: Path) -> None:
    native_run(tmp_path / "run", recipe_of("fp32"))
    assert convert(tmp_path / "run", "mindspeed-llm", tmp_path / "ranks", "--optimizer", "--tp", "2") == 0
    content = ranks_of(tmp_path / "ranks")["iter_0000007/mp_rank_01/model_optim_rng.pt"]
    assert content["iteration"] == 7 and content["args"].consumed_train_samples == 28
    assert content["args"].tensor_model_parallel_size == 2
    # the command line says a fraction of 0.15, and Megatron multiplies it by 20 steps of 4 packs
    assert content["opt_param_scheduler"]["num_steps"] == 28 and content["opt_param_scheduler"]["lr_warmup_steps"] == 0.15 * 80
    groups = content["optimizer"]["param_groups"]
    assert [group["step"] for group in groups] == [7] * len(groups)
    assert sorted(index for group in groups for index in group["params"]) == sorted(content["optimizer"]["state"])
    rates = {(group["max_lr"], group["wd_mult"]) for group in groups}
    assert len(rates) == len(groups) and {wd for _, wd in rates} == {0.0, 1.0}


def change_rank(folder: Path, change: Callable[[dict[str, Any]], None], file: str = "model_optim_rng.pt") -> None:
    path = next(folder.rglob(file))
    content = torch.load(path, weights_only=False)
    change(content)
    torch.save(content, path)


def another_schedule(content: dict[str, Any]) -> None:
    content["opt_param_scheduler"]["lr_decay_style"] = "linear"


def another_optimizer(content: dict[str, Any]) -> None:
    for state in content["optimizer"]["state"].values():
        del state["exp_avg_sq"]


def skipped_updates(content: dict[str, Any]) -> None:
    content["iteration"] = 9


def skipped_samples(content: dict[str, Any]) -> None:
    content["args"].skipped_train_samples = 4


def other_modules(content: dict[str, Any]) -> None:
    del content["optimizer"]["param_groups"][0]


def no_arguments(content: dict[str, Any]) -> None:
    del content["args"]


def no_moments(content: dict[str, Any]) -> None:
    content["optimizer"]["state"] = {}


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (another_schedule, "a schedule that its recipe does not say (lr_decay_style is 'linear', the recipe's is 'cosine')"),
        (another_optimizer, "holds no fp32 exp_avg_sq like "),
        (skipped_updates, "is at iteration 9, its optimizer made [7] updates"),
        (skipped_samples, "skipped 4 samples"),
        (other_modules, "it is of another optimizer, other modules trained,"),
        (no_arguments, "does not say its iteration or its arguments"),
        (no_moments, "holds no fp32 exp_avg like "),
    ],
)
def test_what_cannot_be_moved_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str], change: Any, found: str) -> None:
    native_run(tmp_path / "run", recipe_of("fp32"))
    assert convert(tmp_path / "run", "mindspeed-llm", tmp_path / "ranks", "--optimizer") == 0
    change_rank(tmp_path / "ranks", change)
    assert convert(tmp_path / "ranks", "native", tmp_path / "back", "--optimizer") == 2
    line = capsys.readouterr().err
    assert found in line and line.count("\n") == 1, line
    assert not any((tmp_path / "back").glob("*/state.json"))
    assert convert(tmp_path / "ranks", "native", tmp_path / "weights") == 0, "the weights still move"


def other_size(content: dict[Any, Any]) -> None:
    buffer = next(iter(content[0].values()))
    buffer["exp_avg"] = buffer["exp_avg"][:-64]


def several_buffers(content: dict[Any, Any]) -> None:
    content[1] = content[0]


def old_buckets(content: dict[Any, Any]) -> None:
    content["buckets_coalesced"] = False


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (other_size, "for exp_avg, expected ("),
        (several_buffers, "is not one buffer of coalesced buckets"),
        (old_buckets, "is not one buffer of coalesced buckets"),
    ],
)
def test_flat_buffers_of_another_kind_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str], change: Any, found: str) -> None:
    native_run(tmp_path / "run", recipe_of("bf16"))
    assert convert(tmp_path / "run", "mindspeed-llm", tmp_path / "ranks", "--optimizer") == 0
    change_rank(tmp_path / "ranks", change, "distrib_optim.pt")
    assert convert(tmp_path / "ranks", "native", tmp_path / "back", "--optimizer") == 2
    assert found in capsys.readouterr().err


@pytest.mark.parametrize(
    ("to", "more", "found"),
    [
        ("hf", [], "--to hf writes weights only"),
        ("megatron", [], "--to megatron writes weights only"),
        ("native", ["--dtype", "fp32"], "--dtype would change it"),
        ("mindspeed-llm", ["--rope-scaling", "yarn:2"], "--rope-scaling would change it"),
    ],
)
def test_settings_that_do_not_go_with_an_optimizer_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], to: str, more: list[str], found: str
) -> None:
    native_run(tmp_path / "run", recipe_of())
    assert convert(tmp_path / "run", to, tmp_path / "out", "--optimizer", *more) == 2
    assert found in capsys.readouterr().err


def test_weights_alone_have_no_optimizer_to_move(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    native.save_full_weights(tmp_path / "run", random_weights(), tiny_recipe())
    assert convert(tmp_path / "run", "mindspeed-llm", tmp_path / "out", "--optimizer") == 2
    assert f"--optimizer: {tmp_path / 'run'} holds weights only" in capsys.readouterr().err


def test_the_output_says_what_was_moved_and_what_was_not(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    native_run(tmp_path / "run", recipe_of())
    assert convert(tmp_path / "run", "mindspeed-llm", tmp_path / "with", "--optimizer") == 0
    said = capsys.readouterr().out
    assert "the optimizer after step 7 and 28 packs; continue from it with checkpoint.directory=" in said
    assert "not moved: the states of the random generators" in said and "--no-load-rng" in said
    assert convert(tmp_path / "run", "mindspeed-llm", tmp_path / "without") == 0
    assert "--optimizer moves them" in capsys.readouterr().out
    assert not list((tmp_path / "without").rglob("distrib_optim.pt"))


def test_damage_of_the_optimizers_files_is_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    step = native_run(tmp_path / "run", recipe_of())
    path = next((step / "optimizer").iterdir())
    content = bytearray(path.read_bytes())
    content[-9] ^= 1
    path.write_bytes(content)
    assert convert(tmp_path / "run", "mindspeed-llm", tmp_path / "out", "--optimizer") == 2
    assert "does not match its checksum" in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_a_conversion_that_was_stopped_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    native_run(tmp_path / "run", recipe_of())
    assert convert(tmp_path / "run", "mindspeed-llm", tmp_path / "straight", "--optimizer", "--tp", "2") == 0
    whole, calls = write.write_torch, []

    def stopped(path: Path, *arguments: Any) -> None:
        calls.append(path)
        if len(calls) == 4:
            raise KeyboardInterrupt
        whole(path, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(write, "write_torch", stopped)
        assert convert(tmp_path / "run", "mindspeed-llm", tmp_path / "out", "--optimizer", "--tp", "2") == 130
    assert convert(tmp_path / "run", "mindspeed-llm", tmp_path / "out", "--optimizer", "--tp", "2", "--resume") == 0
    names = [path.relative_to(tmp_path / "out") for path in (tmp_path / "out").rglob("*.pt")]
    assert len(names) == 4
    for name in names:
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "straight" / name).read_bytes()


def test_one_parameter_is_in_memory_at_a_time(tmp_path: Path) -> None:
    native_run(tmp_path / "run", recipe_of())
    source = open_source(tmp_path / "run", SourceOptions())
    training = open_training(tmp_path / "run", source)
    plans = write.plan_ranks(source.weights, source.recipe, fused_norms=False, more={}, training=training)
    largest = max(spec.nbytes for spec in training.optimizer.specs().values())
    assert max(group.nbytes for plan in plans for group in plan.groups) <= largest
    assert max(plan.nbytes for plan in plans) > 10 * largest


def test_changed_pickles_are_read_or_refused_in_one_way(tmp_path: Path) -> None:
    """Three hundred checkpoints of which the pickle of a file has bytes changed, cut or put in at random."""
    chance, refused = random.Random(1), 0
    for precision, file in (("bf16", "distrib_optim.pt"), ("bf16", "model_optim_rng.pt"), ("fp32", "model_optim_rng.pt")):
        native_run(tmp_path / precision / file, recipe_of(precision))
        assert convert(tmp_path / precision / file, "mindspeed-llm", tmp_path / "ranks", "--optimizer") == 0
        path = next((tmp_path / "ranks").rglob(file))
        source = open_source(tmp_path / "ranks", SourceOptions())
        with zipfile.ZipFile(path) as archive:
            entries = {info.filename: archive.read(info) for info in archive.infolist()}
        name = next(name for name in entries if name.endswith("data.pkl"))
        for _ in range(100):
            content = bytearray(entries[name])
            for _ in range(chance.randint(1, 3)):
                at = chance.randrange(len(content))
                content[at : at + chance.randint(0, 2)] = bytes(chance.randrange(256) for _ in range(chance.randint(0, 2)))
            path.unlink()
            with zipfile.ZipFile(path, "w") as archive:
                for entry, value in entries.items():
                    archive.writestr(entry, bytes(content) if entry == name else value)
            try:
                open_training(tmp_path / "ranks", source)
            except ValueError as error:
                refused += 1
                assert "\n" not in str(error)
        shutil.rmtree(tmp_path / "ranks")
    assert refused > 50
