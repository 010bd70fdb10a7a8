"""What tells one family of decoders from another, by the names of model.language.family. Sizes are in LanguageConfig and presets.py."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from mindspeed_vita.config.kinds import Line, OneOf
from mindspeed_vita.config.presets import MODELS


@dataclass(frozen=True, kw_only=True)
class LanguageTraits:
    """Parts of a decoder that differ between families.

    All decoders here have RMSNorm before attention and before the MLP, rotary positions, grouped queries and a gated SiLU MLP.
    """

    hf_model_type: str
    """model_type in the family's own config.json. Import recognises the family by it."""
    hf_base: str
    """How transformers' class names begin: Qwen3 stands for Qwen3Config, Qwen3Model and Qwen3ForCausalLM."""
    qkv_bias: bool = False
    """The projections to queries, keys and values have biases."""
    out_bias: bool = False
    """The projection of the attention's output has a bias."""
    qk_norm: bool = False
    """RMSNorm over each head of the queries and of the keys, before the rotary embedding. All heads share one weight."""
    head_dim: int = 0
    """Width of a head, whatever hidden_size / num_heads is; a recipe may set another. 0: always hidden_size / num_heads."""
    tie_embeddings: bool = False
    """Default of model.language.tie_embeddings."""
    rope_base: float = 1e6
    """Default of model.language.rope_base."""
    norm_eps: float = 1e-6
    """Default of model.language.norm_eps."""
    template: str = "qwen2"
    """Default of data.template."""
    stop_tokens: tuple[str, ...] = ()
    """Tokens that end an answer, in addition to the template's stop token and its padding token."""


RELEASED = "qwen2"
"""The family of the released Long-VITA weights. Recipes and config.json files that name no family mean this one."""

_TRAITS = {
    RELEASED: LanguageTraits(hf_model_type="qwen2", hf_base="Qwen2", qkv_bias=True),
    "qwen3": LanguageTraits(hf_model_type="qwen3", hf_base="Qwen3", qk_norm=True, head_dim=128),
}


def language_names() -> tuple[str, ...]:
    """Names that language_traits knows."""
    return tuple(_TRAITS)


def language_traits(name: str) -> LanguageTraits:
    """The traits of a family.

    Raises:
        ValueError: no such family.
    """
    if name not in _TRAITS:
        raise ValueError(f"model.language.family={name!r}; expected one of {', '.join(_TRAITS)}, or one that a module in plugins registers")
    return _TRAITS[name]


def family_of_hf(model_type: str) -> str:
    """The family whose own config.json has this model_type.

    Raises:
        ValueError: there is none.
    """
    for name, traits in _TRAITS.items():
        if traits.hf_model_type == model_type:
            return name
    known = ", ".join(repr(traits.hf_model_type) for traits in _TRAITS.values())
    raise ValueError(f"config.json has model_type {model_type!r}; expected 'long_vita', or that of a decoder: {known}")


def family_defaults(name: str) -> dict[str, Any]:
    """Recipe keys that a family has defaults for, as nested dicts. Stage, preset and file come over them.

    Raises:
        ValueError: no such family.
    """
    traits = language_traits(name)
    language = {"rope_base": traits.rope_base, "norm_eps": traits.norm_eps, "tie_embeddings": traits.tie_embeddings}
    return {"model": {"language": language}, "data": {"template": traits.template}}


def register_language(name: str, traits: LanguageTraits, presets: Mapping[str, Mapping[str, Any]] | None = None) -> None:
    """Adds a family of decoders; registering the same again changes nothing.

    Args:
        name: for model.language.family.
        traits: how it differs from other decoders.
        presets: names for model.preset, each with the keys of model.language.

    Raises:
        ValueError: the name, a preset or the model_type is taken by another.
    """
    if _TRAITS.get(name, traits) != traits:
        raise ValueError(f"model.language.family {name!r} is registered already, as {_TRAITS[name]}")
    owner = next((other for other, known in _TRAITS.items() if known.hf_model_type == traits.hf_model_type), name)
    if owner != name:
        raise ValueError(f"family {name!r} has hf_model_type {traits.hf_model_type!r}, which is that of {owner!r}; import could not choose")
    models = {preset: {"language": {**sizes, "family": name}} for preset, sizes in (presets or {}).items()}
    for preset, model in models.items():
        if MODELS.get(preset, model) != model:
            raise ValueError(f"model.preset {preset!r} is registered already, with other sizes; choose another name")
    _TRAITS[name] = traits
    MODELS.update(models)


FamilyName = Annotated[str, Line(), OneOf(names=language_names)]
