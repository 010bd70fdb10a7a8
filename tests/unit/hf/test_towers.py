"""Towers other than InternViT-300M in an export: the modelling code gives the native tower's features, weights come back bit for bit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from mindspeed_vita.checkpoint.hf.export import export_hf
from mindspeed_vita.checkpoint.hf.load import import_hf
from tests.tiny_checkpoint import TINY, random_weights, tiny_recipe

TOWERS: dict[str, dict[str, Any]] = {
    "intern_vit_6b": {"qkv_bias": False, "qk_norm": True, "norm": "rms_norm"},
    "siglip": {"tower": "siglip", "normalization": "siglip"},
    "clip": {"tower": "clip", "normalization": "clip", "norm_eps": 1e-5},
}


@pytest.mark.parametrize("name", TOWERS)
def test_the_exported_tower_gives_the_native_features(name: str, tokenizer_folder: Path, tmp_path: Path) -> None:
    from megatron.core.transformer.transformer_config import TransformerConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from mindspeed_vita.models.vision import towers

    model = replace(TINY, vision=replace(TINY.vision, **TOWERS[name]))
    weights = random_weights(model)
    export_hf(weights, tiny_recipe(model), tmp_path / "out", tokenizer=AutoTokenizer.from_pretrained(tokenizer_folder))
    back = import_hf(tmp_path / "out")
    assert replace(back.model.vision, preset="") == replace(model.vision, layer_scale_init=back.model.vision.layer_scale_init)
    assert back.weights.keys() == weights.keys() and all(torch.equal(back.weights[key], weights[key]) for key in weights)

    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out", trust_remote_code=True)
    settings = TransformerConfig(num_layers=1, hidden_size=64, num_attention_heads=1)
    tower = towers.build(model.vision.tower, model.vision, transformer_config=settings)
    tower.load_state_dict({key[7:]: tensor for key, tensor in weights.items() if key.startswith("vision.")}, strict=True)
    tiles = torch.randn(3, 3, model.vision.tile_size, model.vision.tile_size)
    with torch.no_grad():
        torch.testing.assert_close(loaded.model.vision_model(tiles), tower(tiles), rtol=0, atol=1e-5)
