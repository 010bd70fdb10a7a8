"""Tiny Long-VITA weights, tokenizer and export for tests: random, with every parameter away from its neutral value."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from mindspeed_vita.checkpoint.hf.config import hf_config
from mindspeed_vita.checkpoint.mapping.families import family_rules
from mindspeed_vita.checkpoint.mapping.rules import convert_to_hf, convert_to_native
from mindspeed_vita.config import (
    DataConfig,
    LanguageConfig,
    ModelConfig,
    ProjectorConfig,
    Recipe,
    TrainConfig,
    VisionConfig,
    language_traits,
)
from mindspeed_vita.data.tiny_tokenizer import train_tokenizer
from mindspeed_vita.files.safetensors_folder import SINGLE
from mindspeed_vita.hf.configuration_long_vita import config_class
from mindspeed_vita.hf.modeling_long_vita import causal_class
from mindspeed_vita.parallel.layout import ParallelLayout

TEXTS = [
    "What is in this picture? A photo of a cat on a table.",
    "How many? Two people and one dog.",
    "\n\nYes.\nNo.",
    "system user assistant",
]

TINY = ModelConfig(
    vision=VisionConfig(tile_size=28, patch_size=7, hidden_size=16, num_layers=2, num_heads=2, ffn_hidden_size=32),
    projector=ProjectorConfig(hidden_size=24),
    language=LanguageConfig(
        num_layers=2, hidden_size=32, num_heads=4, num_kv_heads=2, ffn_hidden_size=48, vocab_size=384, max_positions=4096, rope_base=5e5
    ),
)


def make_tokenizer(folder: Path) -> Any:
    """A byte-level BPE with the chat and vision tokens, loaded."""
    from transformers import AutoTokenizer

    train_tokenizer(TEXTS, 320, folder)
    return AutoTokenizer.from_pretrained(folder)


def tiny_recipe(model: ModelConfig = TINY, **data: Any) -> Recipe:
    """A recipe around a model, in fp32."""
    return Recipe(model=model, data=replace(DataConfig(max_tiles=4, max_frames=4), **data), train=TrainConfig(precision="fp32"))


def random_weights(model: ModelConfig = TINY, seed: int = 0) -> dict[str, torch.Tensor]:
    """Native names, full tensors, fp32; norms, biases and LayerScale differ from one and zero."""
    ids = {"bos": 0, "eos": 0, "pad": 0, "image": 1, "video": 2, "patch": 3}
    base = language_traits(model.language.family).hf_base
    network = causal_class(base)(config_class(base)(**hf_config(model, token_ids=ids, dtype="float32")))
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for name, parameter in network.named_parameters():  # a table that the output layer shares comes once
        noise = torch.randn(parameter.shape, generator=generator)
        is_scale = parameter.dim() == 1 and name.endswith(("weight", "ls1", "ls2"))
        state[name] = 1 + 0.3 * noise if is_scale else 0.15 * noise
    return dict(convert_to_native(state, family_rules("long_vita", model)))


def write_internvl_chat(folder: Path, weights: dict[str, torch.Tensor], model: ModelConfig = TINY) -> Path:
    """A model of TINY's sizes as InternVL's own repositories lay it out, with remote code; without a tokenizer."""
    folder.mkdir()
    save_file({name: tensor.contiguous() for name, tensor in convert_to_hf(weights, family_rules("internvl_chat", model))}, folder / SINGLE)
    text = {
        "model_type": "qwen2", "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "vocab_size": 384, "rope_theta": 5e5, "max_position_embeddings": 4096, "rms_norm_eps": 1e-6,
    }  # fmt: skip
    tower = {
        "model_type": "intern_vit_6b", "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
        "image_size": 28, "patch_size": 7, "qkv_bias": True, "qk_normalization": False, "norm_type": "layer_norm",
    }  # fmt: skip
    config = {"model_type": "internvl_chat", "llm_config": text, "vision_config": tower, "downsample_ratio": 0.5, "ps_version": "v2"}
    settings = {"select_layer": -1, "force_image_size": 28, "max_dynamic_patch": 6, "min_dynamic_patch": 1}
    (folder / "config.json").write_text(json.dumps({**config, **settings}))
    return folder


def told(state: torch.Tensor) -> dict[str, Any]:
    """What this package keeps beside the weights in a checkpoint of MindSpeed-LLM, without the history, which names each conversion."""
    return {key: value for key, value in json.loads(bytes(state.tolist())).items() if key != "lineage"}


def alone() -> ParallelLayout:
    """The layout of one process, without process groups."""
    groups = ("tp", "pp", "cp", "dp", "dp_cp", "tp_cp")
    sizes = {f"{axis}_{what}": int(what == "size") for axis in ("tp", "pp", "cp", "dp") for what in ("size", "rank")}
    return ParallelLayout(**sizes, **{f"{name}_group": None for name in groups})
