"""The tower's part of config.json, both ways: our settings, the released layout's `visual` dict, and configs of towers on their own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from mindspeed_vita.config import VisionConfig, tower_traits
from mindspeed_vita.hf.choices import NORMS, Normalization
from mindspeed_vita.hf.tiling import NORMALIZATIONS

_ACTIVATIONS = {"gelu": "gelu", "gelu_tanh": "gelu_pytorch_tanh", "quick_gelu": "quick_gelu"}
"""Our names, transformers' names."""
_CONTRASTIVE: dict[str, Normalization] = {"siglip": "siglip", "siglip_vision_model": "siglip", "clip": "clip", "clip_vision_model": "clip"}
"""model_type -> tower, and whose normalization it has."""


def visual_section(vision: VisionConfig) -> dict[str, Any]:
    """The `visual` dict; for InternViT-300M exactly the released one, for others with what the modelling code must know beside it."""
    traits = tower_traits(vision.tower)
    section = {
        "model_type": "intern_vit_6b",
        "hidden_size": vision.hidden_size,
        "intermediate_size": vision.ffn_hidden_size,
        "num_hidden_layers": vision.num_layers,
        "num_attention_heads": vision.num_heads,
        "num_channels": 3,
        "image_size": vision.tile_size,
        "patch_size": vision.patch_size,
        "layer_norm_eps": vision.norm_eps,
        "hidden_act": _ACTIVATIONS[traits.activation],
        "norm_type": vision.norm,
        "qkv_bias": vision.qkv_bias,
        "qk_normalization": vision.qk_norm,
        "initializer_factor": vision.layer_scale_init,
        "initializer_range": 0.02,
    }
    if vision.normalization != "imagenet":
        section["normalization"] = vision.normalization
    if vision.tower != "intern_vit":
        section |= {"tower": vision.tower, **{key: value for key, value in asdict(traits).items() if key != "activation"}}
    return section


def vision_config(config: Mapping[str, Any]) -> VisionConfig:
    """Our settings for a `visual` dict, or for the config.json of InternViT, SigLIP or CLIP, transformers' InternVLVisionConfig included.

    Raises:
        ValueError: a setting we do not have.
    """
    if config.get("model_type") in _CONTRASTIVE:
        return _contrastive(config)
    tower = config.get("tower", "intern_vit")
    traits = tower_traits(tower)
    only(config, "the tower", hidden_act=_ACTIVATIONS[traits.activation])
    norm = config.get("norm_type", "layer_norm")
    if norm not in NORMS:
        raise ValueError(f"the tower has norm_type {norm!r}; expected one of {', '.join(NORMS)}")
    normalization = config.get("normalization", "imagenet")
    if normalization not in NORMALIZATIONS:
        raise ValueError(f"the tower has normalization {normalization!r}; expected one of {', '.join(NORMALIZATIONS)}")
    for key, value in asdict(traits).items():
        if key != "activation" and tower != "intern_vit":
            only(config, f"the tower {tower!r}", **{key: value})
    return VisionConfig(
        tower=tower,
        tile_size=_side(need(config, "image_size"), "image_size"),
        patch_size=_side(need(config, "patch_size"), "patch_size"),
        hidden_size=need(config, "hidden_size"),
        num_layers=need(config, "num_hidden_layers"),
        num_heads=need(config, "num_attention_heads"),
        ffn_hidden_size=need(config, "intermediate_size"),
        qkv_bias=bool(config.get("qkv_bias", config.get("attention_bias", True))),
        qk_norm=bool(config.get("qk_normalization", config.get("use_qk_norm", False))),
        norm=norm,
        norm_eps=config.get("layer_norm_eps", 1e-6),
        normalization=normalization,
        layer_scale_init=config.get("initializer_factor", config.get("layer_scale_init_value", 1.0)),
    )


def _contrastive(config: Mapping[str, Any]) -> VisionConfig:
    """SigLIP's or CLIP's, whole or the tower alone; keys that have transformers' default value need not be there."""
    from transformers import CLIPVisionConfig, SiglipVisionConfig

    tower = _CONTRASTIVE[config["model_type"]]
    part = config["vision_config"] if isinstance(config.get("vision_config"), Mapping) else config
    whole = (SiglipVisionConfig if tower == "siglip" else CLIPVisionConfig)(**{key: part[key] for key in part if key != "model_type"})
    only({"hidden_act": whole.hidden_act}, f"the tower {tower!r}", hidden_act=_ACTIVATIONS[tower_traits(tower).activation])
    return VisionConfig(
        tower=tower,
        tile_size=_side(whole.image_size, "image_size"),
        patch_size=_side(whole.patch_size, "patch_size"),
        hidden_size=whole.hidden_size,
        num_layers=whole.num_hidden_layers,
        num_heads=whole.num_attention_heads,
        ffn_hidden_size=whole.intermediate_size,
        norm_eps=whole.layer_norm_eps,
        normalization=tower,
    )


def _side(value: Any, name: str) -> int:
    if isinstance(value, int):
        return value
    if len(set(value)) != 1:
        raise ValueError(f"the tower has {name} {list(value)}; expected a square")
    return value[0]


def only(config: Mapping[str, Any], what: str, **settings: Any) -> None:
    """Settings that must have the one value we implement, if they are there.

    Raises:
        ValueError: one has another.
    """
    for key, value in settings.items():
        if config.get(key, value) != value:
            raise ValueError(f"{what} has {key} {config[key]!r}; expected {value!r}")


def need(config: Mapping[str, Any], key: str) -> Any:
    """A setting that must be there.

    Raises:
        ValueError: it is not.
    """
    if key not in config:
        raise ValueError(f"config.json has no {key!r}; is it the config of a Long-VITA, of a decoder or of a tower?")
    return config[key]
