"""LoRA in the built-in engine: what trains and what it costs, restarts, and the weights under the adapters."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from mindspeed_vita.checkpoint.native import checkpoint as native
from mindspeed_vita.cli.main import main
from mindspeed_vita.config import recipe_to_dict
from mindspeed_vita.engine import loop
from mindspeed_vita.engine.loop import train
from mindspeed_vita.models.lora import is_adapter
from tests.integration.conftest import save_fresh_weights

LORA = {"rank": 4, "alpha": 32, "parts": ["language", "vision", "projector"]}


@pytest.fixture(scope="module")
def base(tiny, tmp_path_factory) -> Path:
    """Whole weights that the adapters belong to."""
    folder = tmp_path_factory.mktemp("base")
    return save_fresh_weights(tiny.recipe(folder), folder)


@pytest.fixture(scope="module")
def straight(tiny, base, tmp_path_factory) -> Path:
    """Eight steps of adapters of all parts without a break."""
    directory = tmp_path_factory.mktemp("adapters")
    train(recipe(tiny, base, directory))
    return directory


def recipe(tiny: Any, base: Path, directory: Path, lora: Any = LORA, **sections: Any) -> Any:
    train = {"steps": 8, "lr": 3e-2, **sections.pop("train", {})}
    checkpoint = {"init_from": str(base), **sections.pop("checkpoint", {})}
    return tiny.recipe(directory, train=train, lora=lora, checkpoint=checkpoint, **sections)


def test_only_adapters_train_and_only_they_are_saved(straight, base, curve):
    assert curve(straight)[-1] < 0.93 * curve(straight)[0]
    tensors, saved = native.read_full_weights(straight)
    assert all(map(is_adapter, tensors)) and all(".lora_" in name for name in tensors)
    # per decoder layer q, k, v, o, gate, up, down; per tower layer qkv, proj, fc1, fc2; two of the projector; an A and a B each
    assert len(tensors) == 2 * (2 * 7 + 2 * 4 + 2)
    assert all(bool(tensor.any()) for tensor in tensors.values()), "every adapter was trained: B begins at zero"
    assert saved["lora"]["base"] == str(native.find(base)) and len(saved["lora"]["base_fingerprint"]) == 64


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_frozen_base_has_no_gradient_buffer_and_no_optimizer_state(tiny, base, tmp_path, monkeypatch, precision):
    runs: list[Any] = []
    original = loop._Run.train
    monkeypatch.setattr(loop._Run, "train", lambda run, *args: (runs.append(run), original(run, *args))[1])
    train(recipe(tiny, base, tmp_path, train={"precision": precision, "recompute": "full"}), stop_at_step=2)
    model, optimizer = runs[0].model, runs[0].optimizer
    adapters = {name: parameter for name, parameter in model.module.named_parameters() if is_adapter(name)}
    elements = sum(parameter.numel() for parameter in adapters.values())
    assert {parameter.dtype for parameter in adapters.values()} == {torch.float32}
    frozen = [parameter for name, parameter in model.module.named_parameters() if not is_adapter(name)]
    assert frozen and not any(parameter.requires_grad or parameter.grad is not None for parameter in frozen)
    assert {parameter.dtype for parameter in frozen} == {torch.bfloat16 if precision == "bf16" else torch.float32}
    padding = 64 * len(adapters) + 128  # megatron begins each parameter at a multiple of 64 elements
    buffers = sum(buffer.grad_data.numel() for buffer in model.buffers)
    assert elements <= buffers <= elements + padding
    assert {buffer.grad_data.dtype for buffer in model.buffers} == {torch.float32}
    state = optimizer.optimizer.state
    for moment in ("exp_avg", "exp_avg_sq"):
        assert sum(entry[moment].numel() for entry in state.values()) == elements
    assert all(bool(parameter.any()) for name, parameter in adapters.items() if name.endswith("lora_B")), "recomputed layers train"


def test_a_stopped_run_continues_bit_for_bit_with_dropout(tiny, base, tmp_path, curve):
    lora = {**LORA, "dropout": 0.2, "rslora": True}
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    train(recipe(tiny, base, whole, lora))
    train(recipe(tiny, base, broken, lora), stop_at_step=5)
    train(recipe(tiny, base, broken, lora))
    assert curve(broken) == curve(whole)
    ours, theirs = (native.read_full_weights(folder)[0] for folder in (broken, whole))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


RECOMPUTED = [
    {"recompute": "selective"},
    {"recompute": "mlp"},
    {"recompute": "full"},
    {"recompute": "full_but_attention"},
    {"recompute": "full", "offload": "inputs"},
    {"recompute": "full_but_attention", "offload": "inputs"},
    {"recompute": "full", "recompute_layers": 1},
]


@pytest.mark.parametrize("dropout", [0.0, 0.2], ids=["plain", "dropout"])
@pytest.mark.parametrize("parts", [["language"], ["language", "vision", "projector"]], ids=["frozen inputs", "all parts"])
def test_recomputed_layers_train_the_same_adapters_bit_for_bit(tiny, base, tmp_path, curve, parts, dropout):
    """With the decoder alone, its first layer's input comes from frozen tables and needs no gradient."""
    told = {**LORA, "parts": parts, "dropout": dropout}
    train(recipe(tiny, base, tmp_path / "none", told), stop_at_step=3)
    kept = native.read_full_weights(tmp_path / "none")[0]
    assert all(bool(tensor.any()) for tensor in kept.values()), "every adapter was trained: B begins at zero"
    for number, mode in enumerate(RECOMPUTED):
        directory = tmp_path / str(number)
        again = recipe(tiny, base, directory, told, train=mode)
        if dropout and (mode["recompute"] == "mlp" or ("vision" in parts and mode["recompute"].startswith("full"))):
            with pytest.raises(ValueError, match="recomputes it with other random numbers; use lora.dropout=0"):
                train(again)
            continue
        train(again, stop_at_step=3)
        assert curve(directory) == curve(tmp_path / "none") and curve(directory, "grad_norm") == curve(tmp_path / "none", "grad_norm"), mode
        found = native.read_full_weights(directory)[0]
        assert all(torch.equal(found[name], kept[name]) for name in kept), mode


def test_dropout_drops_the_inputs_of_adapters_in_training(tiny, base, straight, tmp_path, curve):
    train(recipe(tiny, base, tmp_path, {**LORA, "dropout": 0.5}), stop_at_step=3)
    losses = curve(tmp_path)
    assert losses[0] == curve(straight)[0], "B is zero in the first step"
    assert losses[2] != pytest.approx(curve(straight)[2], rel=1e-3)


def test_a_run_starts_from_earlier_adapters_and_finds_their_base(tiny, base, straight, tmp_path, curve):
    train(recipe(tiny, straight, tmp_path, train={"lr": 0.0, "min_lr": 0.0}), stop_at_step=1)
    assert curve(tmp_path)[0] < 0.93 * curve(straight)[0], "the adapters are there"
    ours, theirs = (native.read_full_weights(folder)[0] for folder in (tmp_path, straight))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert native.saved_recipe(native.find(tmp_path))["lora"]["base"] == str(native.find(base))


def test_a_base_that_is_missing_or_another_is_refused_in_one_message_and_one_that_moved_is_named(tiny, base, tmp_path, curve):
    moved, other, directory = tmp_path / "moved", tmp_path / "other", tmp_path / "run"
    shutil.copytree(base, moved)
    train(recipe(tiny, moved, directory), stop_at_step=1)
    moved.rename(tmp_path / "there")
    with pytest.raises(ValueError, match=r"step_0000001 holds adapters of .*/moved/step_0000000, which does not exist here; name"):
        train(recipe(tiny, base, directory))
    changed = tiny.recipe(other, train={"seed": 5})
    save_fresh_weights(changed, other)
    with pytest.raises(ValueError, match="holds adapters of other weights"):
        train(recipe(tiny, base, directory, {**LORA, "base": str(other)}))
    train(recipe(tiny, base, directory, {**LORA, "base": str(tmp_path / "there")}), stop_at_step=2)
    assert len(curve(directory)) == 2


def test_what_does_not_fit_is_refused(tiny, base, straight, tmp_path):
    refused = {
        "lora.parts=.* and train.modules=.*: language would be frozen": {"train": {"modules": ["projector"]}, "lora": {"rank": 4}},
        "qkv is no layer of lora.parts": {"lora": {"rank": 4, "targets": ["qkv"]}},
        "lora.rank=4 without weights to adapt": {"lora": {"rank": 4}, "checkpoint": {"init_from": ""}},
        "without lora.rank": {"lora": {"targets": ["q_proj"]}},
        "holds adapters only, and whole modules are to train": {"lora": {}, "checkpoint": {"init_from": str(straight)}},
        "holds other adapters .lora.rank: 4 there, 8 here": {"lora": {**LORA, "rank": 8}, "checkpoint": {"init_from": str(straight)}},
        "parallel.vision_parallel=tensor": {"lora": LORA, "parallel": {"vision_parallel": "tensor"}},
        "of another architecture": {"model": {"language": {"num_layers": 1}}},
    }
    for message, sections in refused.items():
        with pytest.raises(ValueError, match=message):
            train(recipe(tiny, base, tmp_path / "new", **{"lora": LORA, **sections}))
    with pytest.raises(ValueError, match="trained with other adapters .lora.alpha: 32.0 there, 16.0 here"):
        train(recipe(tiny, base, straight, {**LORA, "alpha": 16}))
    with pytest.raises(ValueError, match="trained with other adapters .lora.rank: 4 there, 0 here"):
        train(recipe(tiny, base, straight, {}))


def test_vita_check_looks_for_the_weights_under_the_adapters(tiny, base, straight, tmp_path, capsys):
    file = tmp_path / "recipe.yaml"
    cases = {
        f"starting from fresh adapters; adapters over {base}": (recipe(tiny, base, tmp_path / "new"), 0),
        f"starting from the adapters of {straight}": (recipe(tiny, straight, tmp_path / "new"), 0),
        f"continues from {straight}": (recipe(tiny, base, straight), 0),
        "holds other adapters (lora.rank: 4 there, 2 here": (recipe(tiny, straight, tmp_path / "new", {**LORA, "rank": 2}), 2),
    }
    for said, (told, status) in cases.items():
        file.write_text(yaml.safe_dump(recipe_to_dict(told)))
        assert main(["check", str(file)]) == status
        out = capsys.readouterr().out
        assert said in out and f"adapters of rank {told.lora.rank} of language, vision, projector" in out
