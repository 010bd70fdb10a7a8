"""peft's folders that contradict themselves, or that belong to another base: one message, and no weights with a wrong scale."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from mindspeed_vita.checkpoint.adapter.layers import names_and_shapes
from mindspeed_vita.checkpoint.adapter.peft_files import CONFIG, OURS, write_peft
from mindspeed_vita.checkpoint.adapter.source import open_adapter
from mindspeed_vita.config import LanguageConfig, LoraConfig, ModelConfig, ProjectorConfig, Recipe, VisionConfig
from mindspeed_vita.files.tensors import held

MODEL = ModelConfig(
    vision=VisionConfig(tile_size=28, patch_size=7, hidden_size=16, num_layers=1, num_heads=2, ffn_hidden_size=16),
    projector=ProjectorConfig(hidden_size=16),
    language=LanguageConfig(num_layers=1, hidden_size=16, num_heads=2, num_kv_heads=1, ffn_hidden_size=16, vocab_size=320),
)


def saved(folder: Path, model: ModelConfig = MODEL, **changes: Any) -> Path:
    """What peft saves of adapters of rank 4, with changes of its configuration; None takes a key out."""
    lora = LoraConfig(rank=4, parts=("language", "vision"))
    matrices = {name: torch.full(shape, 0.1) for name, (_, shape) in names_and_shapes(model, lora).items()}
    folder.mkdir()
    write_peft(folder, held(matrices), Recipe(name="a", model=model, lora=lora))
    (folder / OURS).unlink()
    config = {**json.loads((folder / CONFIG).read_text()), **changes}
    (folder / CONFIG).write_text(json.dumps({key: value for key, value in config.items() if value is not None}))
    return folder


def test_a_whole_folder_is_read(tmp_path: Path) -> None:
    adapter = open_adapter(saved(tmp_path / "whole"))
    assert (adapter.lora.rank, adapter.lora.alpha, adapter.lora.parts) == (4, 16.0, ("language", "vision"))
    assert all(float(tensor.min()) == pytest.approx(0.1) for tensor in adapter.read(MODEL).values())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"r": None}, "adapter_config.json: r is None, expected a whole number of at least 1"),
        ({"r": -4}, "r is -4, expected"),
        ({"r": "4"}, "r is '4', expected"),
        ({"r": True}, "r is True, expected"),
        ({"lora_alpha": None}, "lora_alpha is None, expected a positive number"),
        ({"lora_alpha": float("nan")}, "lora_alpha is nan, expected"),
        ({"lora_alpha": 10**400}, "lora_alpha is 10+, expected"),
        ({"lora_dropout": 2}, "lora_dropout is 2, expected a number from 0 to less than 1"),
        ({"target_modules": ["q_proj"]}, r"has adapters of model.\S+, which target_modules of adapter_config.json leaves out"),
    ],
)
def test_a_configuration_that_no_adapter_has_is_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        open_adapter(saved(tmp_path / "peft", **changes))


def test_another_rank_than_that_of_the_matrices_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"does not fit the base with r=8.*lora_A \(4, 16\), expected \(8, 16\)"):
        open_adapter(saved(tmp_path / "peft", r=8)).read(MODEL)


def test_adapters_of_a_base_of_another_width_are_refused(tmp_path: Path) -> None:
    wider = replace(MODEL, language=replace(MODEL.language, hidden_size=32))
    with pytest.raises(ValueError, match=r"does not fit the base with r=4.*\(4, 32\), expected \(4, 16\)"):
        open_adapter(saved(tmp_path / "peft", wider)).read(MODEL)


def test_a_recipe_that_is_no_object_is_named(tmp_path: Path) -> None:
    folder = saved(tmp_path / "peft")
    (folder / OURS).write_text("[1]")
    with pytest.raises(ValueError, match="vita_adapter.json holds a JSON list; expected an object; convert the adapter again"):
        open_adapter(folder)
