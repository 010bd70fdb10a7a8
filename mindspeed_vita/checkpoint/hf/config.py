"""config.json, both ways: from our model settings to the released Long-VITA layout, and from Hugging Face configs to our settings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Optional

from mindspeed_vita.checkpoint.hf.vision_config import need, only, vision_config, visual_section
from mindspeed_vita.config import language_traits
from mindspeed_vita.config.languages import RELEASED, family_of_hf
from mindspeed_vita.config.recipe import LanguageConfig, ModelConfig, ProjectorConfig, RopeScalingConfig
from mindspeed_vita.ops.rotary import RotaryTables

MODEL_TYPE = "long_vita"
"""model_type of the released layout; over another decoder than Qwen2 that decoder's model_type follows: long_vita_qwen3."""


def auto_map(hf_base: str) -> dict[str, str]:
    """Classes that travel with an export, by transformers' auto class. transformers' own registration keeps one auto class a model class.

    Args:
        hf_base: how the decoder's class names begin, such as Qwen2.
    """
    name = "LongVITA" if hf_base == "Qwen2" else f"LongVITA{hf_base}"
    model = f"modeling_long_vita.{name}ForCausalLM"
    return {
        "AutoConfig": f"configuration_long_vita.{name}Config",
        **dict.fromkeys(("AutoModel", "AutoModelForCausalLM", "AutoModelForImageTextToText"), model),
        "AutoProcessor": "processing_long_vita.LongVitaProcessor",
    }


def family_of(config: Mapping[str, Any]) -> Optional[str]:
    """The decoder family of a Long-VITA config.json, released or exported; None for other models.

    Raises:
        ValueError: a Long-VITA over a decoder that no family here describes.
    """
    model_type = str(config.get("model_type"))
    if model_type == MODEL_TYPE:
        return RELEASED
    return family_of_hf(model_type.removeprefix(f"{MODEL_TYPE}_")) if model_type.startswith(f"{MODEL_TYPE}_") else None


def hf_config(model: ModelConfig, *, token_ids: Mapping[str, int], dtype: str) -> dict[str, Any]:
    """config.json of the released layout.

    Args:
        model: sizes.
        token_ids: "bos", "eos", "pad", "image", "video", "patch" (the last three are the context tokens).
        dtype: torch's name, such as "bfloat16".

    Raises:
        ValueError: a projector that the exported code does not know.
    """
    language, vision, projector = model.language, model.vision, model.projector
    from mindspeed_vita.hf.configuration_long_vita import PROJECTORS  # imports transformers

    if projector.kind not in PROJECTORS:
        known = ", ".join(PROJECTORS)
        raise ValueError(f"model.projector.kind={projector.kind!r} has no Hugging Face layout; the exported code knows {known}")
    traits = language_traits(language.family)
    classes = auto_map(traits.hf_base)
    rope = rope_parameters(language)
    scaled = rope["rope_type"] != "default"
    return {
        "architectures": [classes["AutoModel"].split(".")[1]],
        "auto_map": classes,
        "model_type": MODEL_TYPE if language.family == RELEASED else f"{MODEL_TYPE}_{traits.hf_model_type}",
        "hidden_size": language.hidden_size,
        "intermediate_size": language.ffn_hidden_size,
        "num_hidden_layers": language.num_layers,
        "num_attention_heads": language.num_heads,
        "num_key_value_heads": language.num_kv_heads,
        # Qwen2 has its biases and its head width without being told.
        **({} if language.family == RELEASED else {"head_dim": language.head_dim, "attention_bias": traits.qkv_bias}),
        "vocab_size": language.vocab_size,
        "max_position_embeddings": language.max_positions,
        "rms_norm_eps": language.norm_eps,
        "tie_word_embeddings": language.tie_embeddings,
        "hidden_act": "silu",
        "attention_dropout": 0.0,
        "initializer_range": model.init_std,
        # Both spellings: transformers 5 reads the first; 4.57 reads the second, and without it silently takes 10000.
        "rope_parameters": rope,
        "rope_theta": rope["rope_theta"],
        **({"rope_scaling": {key: value for key, value in rope.items() if key != "rope_theta"}} if scaled else {}),
        # 4.57 looks for the length that LongRoPE switches at here only, and without it takes max_position_embeddings.
        **{key: rope[key] for key in ("original_max_position_embeddings",) if key in rope},
        "sliding_window": language.max_positions,
        "use_sliding_window": False,
        "max_window_layers": 70,
        "use_cache": True,
        "bos_token_id": token_ids["bos"],
        "eos_token_id": token_ids["eos"],
        "pad_token_id": token_ids["pad"],
        "image_token_id": token_ids["image"],
        "video_token_id": token_ids["video"],
        "patch_token_id": token_ids["patch"],
        "torch_dtype": dtype,
        "dtype": dtype,
        "visual": visual_section(vision),
        "projector": {
            "hidden_size": projector.hidden_size,
            "layer_norm_eps": projector.norm_eps,
            "pixel_shuffle": projector.pixel_shuffle,
            **({} if projector.kind == "mlp" else {"kind": projector.kind}),
        },
    }


def rope_parameters(language: LanguageConfig) -> dict[str, Any]:
    """Rotary settings in transformers' words.

    An NTK-aware base is written as the base it amounts to, and an attention factor always: versions differ in what they take for it.
    """
    scaling, base = language.rope_scaling, language.rope_base
    if scaling.kind == "none":
        return {"rope_type": "default", "rope_theta": base}
    if scaling.kind == "ntk":
        return {"rope_type": "default", "rope_theta": base * scaling.factor ** (language.head_dim / (language.head_dim - 2))}
    rope: dict[str, Any] = {"rope_type": scaling.kind, "rope_theta": base, "factor": scaling.factor}
    if scaling.kind == "linear":
        return rope
    rope["original_max_position_embeddings"] = scaling.original_positions
    if scaling.kind == "llama3":
        return {**rope, "low_freq_factor": scaling.low_freq_factor, "high_freq_factor": scaling.high_freq_factor}
    rope["attention_factor"] = RotaryTables(language).attention_factor
    if scaling.kind == "yarn":
        return {**rope, "beta_fast": scaling.beta_fast, "beta_slow": scaling.beta_slow}
    return {**rope, "short_factor": list(scaling.short_factor), "long_factor": list(scaling.long_factor)}


_ROPE_KEYS = frozenset(
    ("rope_type", "type", "rope_theta", "factor", "original_max_position_embeddings", "attention_factor")
    + ("beta_fast", "beta_slow", "short_factor", "long_factor", "low_freq_factor", "high_freq_factor")
)
_ROPE_NEUTRAL = {"partial_rotary_factor": 1.0, "truncate": True}
"""Keys that must have these values, if they are there."""


def _rope_scaling(rope: Mapping[str, Any], config: Mapping[str, Any]) -> RopeScalingConfig:
    kind = rope.get("rope_type", rope.get("type", "default"))
    unknown = {key: value for key, value in rope.items() if key not in _ROPE_KEYS and value is not None}
    if kind not in ("default", "linear", "yarn", "longrope", "llama3") or {**_ROPE_NEUTRAL, **unknown} != _ROPE_NEUTRAL:
        known = ", ".join(sorted(_ROPE_KEYS))
        kinds = "default, linear, yarn, longrope and llama3"
        raise ValueError(f"config.json scales positions by {dict(rope)}; supported are {kinds} with {known}")
    if kind == "default":
        return RopeScalingConfig()
    numbers = ("factor", "beta_fast", "beta_slow", "attention_factor", "low_freq_factor", "high_freq_factor")
    values = {key: rope[key] for key in numbers if rope.get(key) is not None}
    if "factor" not in values:
        raise ValueError(f"config.json scales positions by {dict(rope)}, which has no factor; add it")
    if kind != "linear":
        # transformers, too, takes the whole range where the trained one is not told
        original = rope.get("original_max_position_embeddings") or config.get("original_max_position_embeddings")
        values["original_positions"] = int(original or need(config, "max_position_embeddings"))
    scaling = RopeScalingConfig(
        kind=kind, short_factor=tuple(rope.get("short_factor") or ()), long_factor=tuple(rope.get("long_factor") or ()), **values
    )
    own = replace(scaling, attention_factor=0.0)
    # an export writes the method's own factor out
    return own if RotaryTables(LanguageConfig(rope_scaling=own)).attention_factor == scaling.attention_factor else scaling


def model_config(config: Mapping[str, Any]) -> ModelConfig:
    """Our settings for a Long-VITA config.json, released or exported.

    Raises:
        ValueError: another architecture, or a setting we do not have.
    """
    if family_of(config) is None:
        raise ValueError(f"config.json has model_type {config.get('model_type')!r}, expected 'long_vita'")
    vision = vision_config(need(config, "visual"))
    projector = config.get("projector") or {}
    return ModelConfig(
        vision=vision,
        projector=ProjectorConfig(
            hidden_size=projector.get("hidden_size", vision.hidden_size),
            norm_eps=projector.get("layer_norm_eps", 1e-5),
            pixel_shuffle=projector.get("pixel_shuffle", 2),
            kind=projector.get("kind", "mlp"),
        ),
        language=language_config(config),
        init_std=config.get("initializer_range", 0.02),
    )


def language_config(config: Mapping[str, Any]) -> LanguageConfig:
    """Our settings for the config.json of a decoder or of a Long-VITA.

    Raises:
        ValueError: another architecture, or a setting we do not have.
    """
    family = family_of(config) or family_of_hf(str(config.get("model_type")))
    traits = language_traits(family)
    positions = need(config, "max_position_embeddings")
    # Families that have no such switch, such as Mistral, use the window where there is one.
    windowed = config.get("use_sliding_window", (config.get("sliding_window") or positions) < positions)
    if windowed or any(kind != "full_attention" for kind in config.get("layer_types") or ()):
        raise ValueError("config.json has use_sliding_window true, or layers of another kind; only full attention is supported")
    only(config, "the language model", hidden_act="silu", mlp_bias=False)
    if family != RELEASED:  # Qwen2 has its biases whatever this key says
        only(config, f"the decoder {family!r}", attention_bias=traits.qkv_bias)
    width, even = config.get("head_dim"), need(config, "hidden_size") // need(config, "num_attention_heads")
    if width is not None and not traits.head_dim and width != even:
        raise ValueError(f"config.json has head_dim {width}; only hidden_size / num_attention_heads = {even} is supported")
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    return LanguageConfig(
        family=family,
        head_width=(width or 0) if traits.head_dim else 0,
        num_layers=need(config, "num_hidden_layers"),
        hidden_size=need(config, "hidden_size"),
        num_heads=need(config, "num_attention_heads"),
        num_kv_heads=config.get("num_key_value_heads") or config["num_attention_heads"],
        ffn_hidden_size=need(config, "intermediate_size"),
        vocab_size=need(config, "vocab_size"),
        max_positions=positions,
        rope_base=float(rope.get("rope_theta") or config.get("rope_theta") or 10000.0),
        rope_scaling=_rope_scaling(rope, config),
        norm_eps=config.get("rms_norm_eps", 1e-6),
        tie_embeddings=bool(config.get("tie_word_embeddings", False)),
    )
