"""InternVL folders: both layouts give the weights of transformers' own model, and what does not fit is refused with the difference."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from mindspeed_vita.checkpoint.hf.load import import_hf
from mindspeed_vita.cli.main import main


@pytest.fixture(scope="module")
def internvl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny InternVL as transformers saves it; its projector's biases are zero, as initialised ones are."""
    from transformers import InternVLConfig, InternVLForConditionalGeneration, Qwen2Config
    from transformers.models.internvl.configuration_internvl import InternVLVisionConfig

    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    vision = InternVLVisionConfig(image_size=[28, 28], patch_size=[7, 7], attention_bias=True, use_mean_pooling=True, **sizes)
    text = Qwen2Config(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, vocab_size=384,
        max_position_embeddings=4096, tie_word_embeddings=False,
    )  # fmt: skip
    torch.manual_seed(0)
    model = InternVLForConditionalGeneration(InternVLConfig(vision_config=vision, text_config=text, tie_word_embeddings=False))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if not name.endswith(("linear_1.bias", "linear_2.bias")):
                parameter.normal_()
            else:
                parameter.zero_()
    folder = tmp_path_factory.mktemp("internvl") / "model"
    model.save_pretrained(folder)
    return folder


def remote_code(folder: Path, target: Path) -> Path:
    """The same model as OpenGVLab's code lays it out, written from its description."""
    held = load_file(folder / "model.safetensors")
    renamed: dict[str, torch.Tensor] = {}
    for name, tensor in held.items():
        for theirs, ours in (
            ("multi_modal_projector.layer_norm.", "mlp1.0."), ("multi_modal_projector.linear_1.", "mlp1.1."),
            ("multi_modal_projector.linear_2.", "mlp1.3."), ("vision_tower.", "vision_model."), ("encoder.layer.", "encoder.layers."),
            ("embeddings.cls_token", "embeddings.class_embedding"), ("position_embeddings", "position_embedding"),
            ("patch_embeddings.projection", "patch_embedding"), ("attention.projection_layer", "attn.proj"), ("lambda_", "ls"),
            ("layernorm_before", "norm1"), ("layernorm_after", "norm2"),
        ):  # fmt: skip
            name = name.replace(theirs, ours)
        renamed[name] = tensor
    for layer in range(2):
        for kind in ("weight", "bias"):
            parts = [renamed.pop(f"vision_model.encoder.layers.{layer}.attention.{part}_proj.{kind}") for part in "qkv"]
            renamed[f"vision_model.encoder.layers.{layer}.attn.qkv.{kind}"] = torch.cat(parts)
    config = json.loads((folder / "config.json").read_text())
    vision = {**config["vision_config"], "model_type": "intern_vit_6b", "image_size": 28, "patch_size": 7, "qkv_bias": True}
    told = {"model_type": "internvl_chat", "llm_config": config["text_config"], "vision_config": vision, "ps_version": "v2"}
    target.mkdir()
    (target / "config.json").write_text(json.dumps({**told, "downsample_ratio": 0.5, "select_layer": -1}))
    save_file(renamed, target / "model.safetensors")
    return target


def test_both_layouts_give_the_same_weights(internvl: Path, tmp_path: Path) -> None:
    ours, theirs = import_hf(internvl), import_hf(remote_code(internvl, tmp_path / "remote"))
    assert ours.weights.specs() == theirs.weights.specs() and ours.model == theirs.model
    assert all(torch.equal(ours.weights[name], theirs.weights[name]) for name in ours.weights)
    assert ours.model.projector.hidden_size == 32 and not ours.initialised


def test_text_has_the_logits_of_transformers_own_model(internvl: Path) -> None:
    """In float64: the exported modelling code against InternVLForConditionalGeneration."""
    from transformers import InternVLForConditionalGeneration

    from mindspeed_vita.checkpoint.hf.config import hf_config
    from mindspeed_vita.checkpoint.mapping.families import family_rules
    from mindspeed_vita.checkpoint.mapping.rules import convert_to_hf
    from mindspeed_vita.hf.configuration_long_vita import config_class
    from mindspeed_vita.hf.modeling_long_vita import causal_class

    found = import_hf(internvl)
    ids = {"bos": 0, "eos": 0, "pad": 0, "image": 5, "video": 6, "patch": 7}
    config = config_class("Qwen2")(**hf_config(found.model, token_ids=ids, dtype="float64"))
    ours: Any = causal_class("Qwen2")(config).double().eval()
    ours.load_state_dict(dict(convert_to_hf(found.weights, family_rules("long_vita", found.model))), strict=True)
    theirs = InternVLForConditionalGeneration.from_pretrained(internvl, dtype=torch.float64).eval()
    words = torch.randint(8, 380, (1, 12), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        left, right = ours(input_ids=words).logits, theirs(input_ids=words).logits
    assert (left - right).abs().max() < 1e-9 * right.abs().max()


def test_a_projector_with_biases_is_refused_and_can_be_started_anew(
    internvl: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(internvl, tmp_path / "biased")
    held = load_file(tmp_path / "biased" / "model.safetensors")
    held["multi_modal_projector.linear_1.bias"][3] = 0.25
    save_file(held, tmp_path / "biased" / "model.safetensors")
    command = ["convert", "--from", str(tmp_path / "biased"), "--to", "native", "--output", str(tmp_path / "out")]
    assert main(command) == 2
    said = capsys.readouterr().err
    assert "multi_modal_projector.linear_1.bias has values up to 0.25" in said and "--new-projector takes the decoder" in said
    assert not (tmp_path / "out").exists()
    assert main([*command, "--new-projector"]) == 0
    assert "new, with initial values: projector.norm.weight" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"downsample_ratio": 0.25}, r"multi_modal_projector.layer_norm.weight \(64,\), expected \(256,\)"),
        ({"vision_feature_layer": -2}, "InternVL has vision_feature_layer -2; expected -1"),
        ({"text_config": {"model_type": "internlm2"}}, "internlm2"),
    ],
)
def test_another_model_is_refused(internvl: Path, tmp_path: Path, change: dict[str, Any], message: str) -> None:
    shutil.copytree(internvl, tmp_path / "other")
    config = json.loads((internvl / "config.json").read_text())
    (tmp_path / "other" / "config.json").write_text(json.dumps({**config, **change}))
    with pytest.raises(ValueError, match=message):
        import_hf(tmp_path / "other")


def test_a_name_of_another_layout_is_refused(internvl: Path, tmp_path: Path) -> None:
    shutil.copytree(internvl, tmp_path / "other")
    held = load_file(internvl / "model.safetensors")
    save_file({**held, "audio_tower.weight": torch.ones(1)}, tmp_path / "other" / "model.safetensors")
    with pytest.raises(ValueError, match="1 unexpected: audio_tower.weight"):
        import_hf(tmp_path / "other")
