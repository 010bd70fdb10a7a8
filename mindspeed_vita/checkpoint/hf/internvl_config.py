"""config.json of InternVL, both ways: from our settings to transformers' InternVLConfig, and from it or InternVL's own to our settings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mindspeed_vita.checkpoint.hf.config import hf_config, language_config
from mindspeed_vita.checkpoint.hf.vision_config import need, only, vision_config
from mindspeed_vita.config import language_traits, tower_traits
from mindspeed_vita.config.recipe import DataConfig, ModelConfig, ProjectorConfig

MODEL_TYPE, CHAT_MODEL_TYPE = "internvl", "internvl_chat"
"""model_type of transformers' own InternVL, and of InternVL's repositories with remote code."""
PROJECTOR_WIDTH = "long_vita_projector_hidden_size"
"""Key of config.json that says how much of the projector's inner width is not padding. transformers keeps and ignores it."""
_NORM_EPS = 1e-5
"""LayerNorm epsilon of InternVL's projector, which no config can change."""
_QK_NORM_EPS = 1e-6
"""Epsilon of the norms of the tower's queries and keys, which no config can change either."""
_OWN_KEYS = ("architectures", "auto_map", "model_type", "image_token_id", "video_token_id", "patch_token_id", "visual", "projector")
"""Keys of a Long-VITA config.json that are not of its decoder."""


def check_internvl(model: ModelConfig, data: DataConfig) -> None:
    """Refuse what InternVL's model or processor cannot compute, with every difference.

    Raises:
        ValueError: it cannot.
    """
    vision, projector, width = model.vision, model.projector, model.language.hidden_size
    found = []
    if tower_traits(vision.tower) != tower_traits("intern_vit"):
        found.append(f"model.vision.tower is {vision.tower!r}, InternVL has InternViT ('intern_vit') only")
    if vision.qk_norm and vision.norm_eps != _QK_NORM_EPS:
        found.append(f"model.vision.norm_eps is {vision.norm_eps} with qk_norm, InternVL norms queries and keys with {_QK_NORM_EPS}")
    if projector.kind != "mlp":
        found.append(f"model.projector.kind is {projector.kind!r}, InternVL has 'mlp' only")
    if projector.norm_eps != _NORM_EPS:
        found.append(f"model.projector.norm_eps is {projector.norm_eps}, InternVL has {_NORM_EPS}")
    if projector.hidden_size > width:
        found.append(f"model.projector.hidden_size is {projector.hidden_size}, InternVL has that of the decoder, {width}, at most")
    if projector.pixel_shuffle & (projector.pixel_shuffle - 1):
        found.append(f"model.projector.pixel_shuffle is {projector.pixel_shuffle}, InternVL's downsample_ratio needs a power of two")
    if data.tiling != "dynamic":
        found.append(f"data.tiling is {data.tiling!r}, InternVL cuts pictures as 'dynamic' does")
    if found:
        raise ValueError(f"this model has no InternVL layout: {'; '.join(found)}. Use --to hf, which exports it with its own code")


def internvl_config(model: ModelConfig, *, token_ids: Mapping[str, int], dtype: str) -> dict[str, Any]:
    """config.json of transformers' InternVLForConditionalGeneration.

    Args:
        model: sizes; check_internvl() has passed.
        token_ids: as for hf_config().
        dtype: torch's name, such as "bfloat16".
    """
    vision, traits = model.vision, language_traits(model.language.family)
    ours = hf_config(model, token_ids=token_ids, dtype=dtype)
    text = {key: value for key, value in ours.items() if key not in _OWN_KEYS}
    tied = model.language.tie_embeddings
    return {
        "architectures": ["InternVLForConditionalGeneration"],
        "model_type": MODEL_TYPE,
        "downsample_ratio": 1 / model.projector.pixel_shuffle,
        "image_seq_length": model.tokens_per_tile,
        "image_token_id": token_ids["image"],
        "projector_hidden_act": "gelu",
        "vision_feature_layer": -1,
        "vision_feature_select_strategy": "default",
        "tie_word_embeddings": tied,
        "bos_token_id": token_ids["bos"],
        "eos_token_id": token_ids["eos"],
        "pad_token_id": token_ids["pad"],
        PROJECTOR_WIDTH: model.projector.hidden_size,
        "torch_dtype": dtype,
        "dtype": dtype,
        "text_config": {"architectures": [f"{traits.hf_base}ForCausalLM"], "model_type": traits.hf_model_type, **text},
        "vision_config": {
            "architectures": ["InternVLVisionModel"],
            "model_type": "internvl_vision",
            "hidden_size": vision.hidden_size,
            "intermediate_size": vision.ffn_hidden_size,
            "num_hidden_layers": vision.num_layers,
            "num_attention_heads": vision.num_heads,
            "num_channels": 3,
            "image_size": [vision.tile_size] * 2,
            "patch_size": [vision.patch_size] * 2,
            "attention_bias": vision.qkv_bias,
            "use_qk_norm": vision.qk_norm,
            "hidden_act": "gelu",
            "norm_type": vision.norm,
            "layer_norm_eps": vision.norm_eps,
            "layer_scale_init_value": vision.layer_scale_init,
            "initializer_range": 0.02,
            "attention_dropout": 0.0,
            "hidden_dropout_prob": 0.0,
            "projection_dropout": 0.0,
            "use_absolute_position_embeddings": True,
            "use_mask_token": False,
            "use_mean_pooling": True,
            "torch_dtype": dtype,
            "dtype": dtype,
        },
    }


def is_internvl(config: Mapping[str, Any]) -> bool:
    """Whether a config.json is that of an InternVL."""
    return config.get("model_type") in (MODEL_TYPE, CHAT_MODEL_TYPE)


def internvl_model(config: Mapping[str, Any]) -> ModelConfig:
    """Our settings for the config.json of an InternVL, transformers' or InternVL's own.

    Raises:
        ValueError: a setting we do not have.
    """
    return _chat_model(config) if config.get("model_type") == CHAT_MODEL_TYPE else _native_model(config)


def _native_model(config: Mapping[str, Any]) -> ModelConfig:
    from transformers import InternVLConfig

    whole = InternVLConfig(**{key: value for key, value in config.items() if key != "model_type"}).to_dict()  # keys that were left out
    only(whole, "InternVL", vision_feature_layer=-1, vision_feature_select_strategy="default", projector_hidden_act="gelu")
    fixed: dict[str, Any] = {"use_absolute_position_embeddings": True, "use_mask_token": False, "use_mean_pooling": True}
    if whole["vision_config"]["use_qk_norm"]:
        fixed["layer_norm_eps"] = _QK_NORM_EPS  # ours has one epsilon for all norms of a tower
    only(whole["vision_config"], "InternVL's tower", **fixed)
    return _model(whole["text_config"], whole["vision_config"], whole, tied=whole.get("tie_word_embeddings"))


def _chat_model(config: Mapping[str, Any]) -> ModelConfig:
    only(config, "InternVL", select_layer=-1, ps_version="v2", use_backbone_lora=0, use_llm_lora=0)
    tower, text = dict(need(config, "vision_config")), need(config, "llm_config")
    if config.get("force_image_size"):
        only(tower, "InternVL's tower", image_size=config["force_image_size"])
    return _model(text, tower, config, tied=text.get("tie_word_embeddings", config.get("tie_word_embeddings")))


def _model(text: Mapping[str, Any], tower: Mapping[str, Any], whole: Mapping[str, Any], *, tied: Any) -> ModelConfig:
    language = language_config({**text, "tie_word_embeddings": bool(tied)})
    ratio = whole.get("downsample_ratio", 0.5)
    shuffle = round(1 / ratio)
    if shuffle * ratio != 1:
        raise ValueError(f"InternVL has downsample_ratio {ratio}; expected one over a whole number, such as 0.5")
    width = whole.get(PROJECTOR_WIDTH, language.hidden_size)
    projector = ProjectorConfig(hidden_size=width, norm_eps=_NORM_EPS, pixel_shuffle=shuffle)
    return ModelConfig(vision=vision_config(tower), projector=projector, language=language, init_std=text.get("initializer_range", 0.02))
