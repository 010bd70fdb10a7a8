"""Import: released folders, Qwen2.5 joined with InternViT, and what is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from mindspeed_vita.checkpoint.hf.config import hf_config, model_config, vision_config
from mindspeed_vita.checkpoint.hf.load import ImportedModel, import_hf
from mindspeed_vita.checkpoint.mapping.families import family_rules
from mindspeed_vita.checkpoint.mapping.rules import convert_to_hf
from mindspeed_vita.config import ModelConfig, RopeScalingConfig
from mindspeed_vita.files.safetensors_folder import INDEX, SafetensorsFolder
from tests.tiny_checkpoint import TINY, random_weights

RELEASED = {
    "model_type": "long_vita", "hidden_size": 5120, "intermediate_size": 13824, "num_hidden_layers": 48, "num_attention_heads": 40,
    "num_key_value_heads": 8, "vocab_size": 152064, "rope_theta": 1e6, "max_position_embeddings": 1310720, "rms_norm_eps": 1e-6,
    "sliding_window": 1310720, "use_sliding_window": False, "tie_word_embeddings": False,
    "visual": {
        "model_type": "intern_vit_6b", "hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096,
        "image_size": 448, "patch_size": 14, "layer_norm_eps": 1e-6, "qkv_bias": True, "qk_normalization": False, "norm_type": "layer_norm",
    },
}  # fmt: skip


def _write(folder: Path, config: dict[str, Any], tensors: dict[str, torch.Tensor]) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    save_file({name: tensor.clone() for name, tensor in tensors.items()}, folder / "model.safetensors")
    return folder


def _released(folder: Path, **extra: torch.Tensor) -> Path:
    ids = {"bos": 0, "eos": 0, "pad": 0, "image": 1, "video": 2, "patch": 3}
    config = hf_config(TINY, token_ids=ids, dtype="float32")
    return _write(folder, config, {**dict(convert_to_hf(random_weights(), family_rules("long_vita", TINY))), **extra})


def _qwen(folder: Path, **changes: Any) -> Path:
    language = {name: tensor for name, tensor in random_weights().items() if name.startswith("language.")}
    config = {
        "model_type": "qwen2", "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "vocab_size": 384, "rope_theta": 5e5, "max_position_embeddings": 4096, "rms_norm_eps": 1e-6,
    }  # fmt: skip
    return _write(folder, {**config, **changes}, dict(convert_to_hf(language, family_rules("qwen2", TINY))))


def _tower(folder: Path, family: str) -> Path:
    vision = {name: tensor for name, tensor in random_weights().items() if name.startswith("vision.")}
    config: dict[str, Any] = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    if family == "internvl_vision":
        config |= {"model_type": "internvl_vision", "image_size": [28, 28], "patch_size": [7, 7], "attention_bias": True}
    else:
        config |= {"model_type": "intern_vit_6b", "image_size": 28, "patch_size": 7, "qkv_bias": True}
    return _write(folder, config, dict(convert_to_hf(vision, family_rules(family, TINY))))


def test_released_config_is_the_14b_preset() -> None:
    assert model_config(RELEASED) == ModelConfig()


def test_config_goes_there_and_back() -> None:
    ids = {"bos": 0, "eos": 0, "pad": 0, "image": 1, "video": 2, "patch": 3}
    back = model_config(hf_config(TINY, token_ids=ids, dtype="float32"))
    assert (back.language, back.vision, back.projector) == (TINY.language, TINY.vision, TINY.projector)


@pytest.mark.parametrize("factor", [0.0, 1.25])
@pytest.mark.parametrize("kind", ["yarn", "longrope"])
def test_stretched_positions_are_written_for_every_version(kind: str, factor: float) -> None:
    """An explicit attention factor, and the trained length where 4.57 looks for it; both are read back as they were."""
    divisors = {"short_factor": (1.0,) * 4, "long_factor": (2.0,) * 4} if kind == "longrope" else {}
    scaling = RopeScalingConfig(kind=kind, factor=4.0, original_positions=1024, attention_factor=factor, **divisors)
    model = replace(TINY, language=replace(TINY.language, rope_scaling=scaling))
    config = hf_config(model, token_ids={"bos": 0, "eos": 0, "pad": 0, "image": 1, "video": 2, "patch": 3}, dtype="float32")
    assert config["original_max_position_embeddings"] == config["rope_scaling"]["original_max_position_embeddings"] == 1024
    assert config["rope_parameters"]["attention_factor"] == (factor or pytest.approx({"yarn": 1.1386294, "longrope": 1.0954451}[kind]))
    assert model_config(config).language == model.language


def test_stretched_positions_without_a_trained_length_count_all() -> None:
    config = {**RELEASED, "rope_scaling": {"type": "yarn", "factor": 4.0}}
    assert model_config(config).language.rope_scaling.original_positions == RELEASED["max_position_embeddings"]


def test_stray_parameter_is_dropped_and_any_other_is_refused(tmp_path: Path) -> None:
    imported = import_hf(_released(tmp_path / "stray", unused=torch.zeros(1)))
    assert imported.weights.keys() == random_weights().keys()
    with pytest.raises(ValueError, match="other: .* 1 unexpected: model.extra"):
        import_hf(_released(tmp_path / "other", **{"model.extra": torch.zeros(1)}))


def test_shapes_that_do_not_fit_the_config_are_named(tmp_path: Path) -> None:
    folder = _released(tmp_path / "long_vita")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "vocab_size": 400}))
    with pytest.raises(ValueError, match=r"long_vita: .* 2 of another shape: model.embed_tokens.weight \(384, 32\), expected \(400, 32\)"):
        import_hf(folder)
    with pytest.raises(ValueError, match=r"qwen: .* 6 of another shape: model.layers.0.mlp.gate_proj.weight \(48, 32\), expected"):
        import_hf(_qwen(tmp_path / "qwen", intermediate_size=64), vision=_tower(tmp_path / "tower", "intern_vit"))
    with pytest.raises(ValueError, match="model.safetensors lacks model.norm.bias, which its index promises"):
        names = [*SafetensorsFolder(folder), "model.norm.bias"]
        (folder / INDEX).write_text(json.dumps({"weight_map": dict.fromkeys(names, "model.safetensors")}))
        import_hf(folder)



@pytest.mark.parametrize("family", ["intern_vit", "internvl_vision"])
def test_qwen_and_a_tower_join_with_a_fresh_projector(tmp_path: Path, family: str) -> None:
    imported = import_hf(_qwen(tmp_path / "qwen"), vision=_tower(tmp_path / "tower", family))
    weights = random_weights()

    assert imported.weights.keys() == weights.keys()
    fresh = {name for name in weights if name.startswith("projector.")}
    assert set(imported.initialised) == fresh
    assert all(torch.equal(imported.weights[name], weights[name]) for name in weights.keys() - fresh)
    assert imported.weights["projector.norm.weight"].eq(1).all()
    # The hidden width of a joined projector is the tower's, as in the released weights.
    assert imported.weights["projector.linear_fc1.weight"].shape == (16, 64)
    assert imported.weights["projector.linear_fc2.weight"].shape == (32, 16)


def test_a_tied_table_stored_twice_must_be_one(tmp_path: Path) -> None:
    folder = _qwen(tmp_path / "qwen", tie_word_embeddings=True)
    with pytest.raises(ValueError, match="tie_word_embeddings, but its lm_head.weight differs"):
        import_hf(folder, vision=_tower(tmp_path / "tower", "intern_vit"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "llama"}, "'llama'; expected 'long_vita', or that of a decoder: 'qwen2', 'qwen3'; a decoder needs --vision"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "layers of another kind; only full attention"),
        ({"model_type": "qwen3", "attention_bias": True}, "the decoder 'qwen3' has attention_bias True; expected False"),
        ({"model_type": "long_vita_llama"}, "model_type 'llama'; expected 'long_vita', or that of a decoder"),
        ({"use_sliding_window": True}, "use_sliding_window true"),
        ({"hidden_act": "gelu"}, "the language model has hidden_act 'gelu'; expected 'silu'"),
        ({"head_dim": 16}, "head_dim 16; only hidden_size / num_attention_heads = 8 is supported"),
        ({"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e6}}, "scales positions"),
        ({"rope_scaling": {"type": "yarn", "factor": 4.0, "mscale": 2.0}}, "scales positions by .*mscale"),
        ({"rope_scaling": {"type": "yarn"}}, "has no factor"),
    ],
)
def test_other_architectures_are_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    folder = _qwen(tmp_path / "qwen", **changes)
    with pytest.raises(ValueError, match=message):
        import_hf(folder, vision=_tower(tmp_path / "tower", "intern_vit"))


def test_a_language_model_alone_asks_for_a_tower(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="add --vision"):
        import_hf(_qwen(tmp_path / "qwen"))


def test_towers_of_another_kind_are_refused() -> None:
    with pytest.raises(ValueError, match="model.vision.tower='eva'; expected one of intern_vit, siglip, clip"):
        vision_config({**RELEASED["visual"], "tower": "eva"})
    with pytest.raises(ValueError, match="the tower 'clip' has hidden_act 'gelu'; expected 'quick_gelu'"):
        vision_config({"model_type": "clip_vision_model", "hidden_act": "gelu"})
    with pytest.raises(ValueError, match="the tower has hidden_act 'quick_gelu'; expected 'gelu'"):
        vision_config({**RELEASED["visual"], "hidden_act": "quick_gelu"})
    with pytest.raises(ValueError, match="the tower has norm_type 'batch_norm'; expected one of layer_norm, rms_norm"):
        vision_config({**RELEASED["visual"], "norm_type": "batch_norm"})
    with pytest.raises(ValueError, match="the tower has normalization 'inception'; expected one of imagenet, clip, siglip"):
        vision_config({**RELEASED["visual"], "normalization": "inception"})


def test_folders_without_weights_say_what_they_hold(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no config.json"):
        import_hf(tmp_path)
    folder = _released(tmp_path / "pickled")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ValueError, match="pickled weights .*expected safetensors"):
        import_hf(folder)
    cut = _released(tmp_path / "cut")
    content = (cut / "model.safetensors").read_bytes()
    (cut / "model.safetensors").write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match="model.safetensors is not a whole safetensors file"):
        import_hf(cut)


@pytest.mark.parametrize("kind", ["siglip", "clip"])
@pytest.mark.parametrize("whole", [False, True], ids=["tower", "whole-model"])
def test_towers_of_transformers_are_imported_for_other_tiles(tmp_path: Path, kind: str, whole: bool) -> None:
    """A folder that transformers saved, joined with a language model; positions interpolated as transformers does it while running."""
    import transformers

    sizes = {
        "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 21, "patch_size": 7,
    }  # fmt: skip
    name = {"siglip": "Siglip", "clip": "CLIP"}[kind]
    if whole:
        text = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 40}
        model = getattr(transformers, f"{name}Model")(getattr(transformers, f"{name}Config")(vision_config=sizes, text_config=text))
        tower = model.vision_model
    else:
        tower = model = getattr(transformers, f"{name}VisionModel")(getattr(transformers, f"{name}VisionConfig")(**sizes))
    model.save_pretrained(tmp_path / "tower")
    found = import_hf(_qwen(tmp_path / "qwen"), vision=tmp_path / "tower", tile_size=28)
    assert (found.model.vision.tower, found.model.vision.normalization, found.model.vision.grid) == (kind, kind, 4)
    assert {key for key, tensor in found.weights.items() if key.startswith("vision.")} == {
        key for key in random_weights(found.model) if key.startswith("vision.")
    }
    tiles = torch.randn(2, 3, 28, 28)
    with torch.no_grad():
        expected = tower(tiles, interpolate_pos_encoding=True).last_hidden_state
        features = _native_tower(found)(tiles)
    torch.testing.assert_close(features, expected[:, -16:], rtol=0, atol=1e-5)


def _native_tower(found: ImportedModel) -> torch.nn.Module:
    from megatron.core.transformer.transformer_config import TransformerConfig

    from mindspeed_vita.models.vision import towers

    settings = TransformerConfig(num_layers=1, hidden_size=64, num_attention_heads=1)
    tower = towers.build(found.model.vision.tower, found.model.vision, transformer_config=settings)
    tower.load_state_dict({key[7:]: tensor for key, tensor in found.weights.items() if key.startswith("vision.")}, strict=True)
    return tower
