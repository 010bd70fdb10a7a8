"""The rule tables: which Hugging Face names and layouts each family of checkpoints uses for which native tensors.

long_vita: the released Long-VITA layout, over any decoder. The name of a decoder's family, such as qwen2: that family's own layout.
internvl, internvl_model, internvl_chat: whole InternVL models, in internvl.py. intern_vit: InternViT's own repositories.
internvl_vision, siglip_vision, clip_vision: transformers' towers, in vision_families.py.
"""

from __future__ import annotations

from dataclasses import replace

from mindspeed_vita.checkpoint.mapping.internvl import INTERNVL, internvl_rules
from mindspeed_vita.checkpoint.mapping.rules import Gated, GroupedQKV, Rule
from mindspeed_vita.checkpoint.mapping.vision_families import VISION_FAMILIES, intern_vit_rules, vision_rules
from mindspeed_vita.config import LanguageTraits, language_names, language_traits, projector_traits
from mindspeed_vita.config.recipe import LanguageConfig, ModelConfig, ProjectorConfig


def family_rules(family: str, model: ModelConfig) -> tuple[Rule, ...]:
    """All rules of a family, layers expanded.

    Args:
        family: long_vita, a layout of InternVL, a family of decoders or a family of towers.
        model: sizes. A family of decoders uses the language part only, a family of towers the vision part only.

    Raises:
        ValueError: unknown family.
    """
    if family == "long_vita":
        released_vision = (_prefixed(rule, "model.vision_model.") for rule in intern_vit_rules(model.vision))
        return (*decoder_rules(language_traits(model.language.family), model.language), *released_vision, *_projector(model.projector))
    if family in INTERNVL:
        return internvl_rules(family, model, decoder_rules(language_traits(model.language.family), model.language))
    if family in language_names():
        return decoder_rules(language_traits(family), model.language)
    if family in VISION_FAMILIES:
        return vision_rules(family, model.vision)
    families = ("long_vita", *INTERNVL, *language_names(), *VISION_FAMILIES)
    raise ValueError(f"found weight family {family!r}, expected one of {', '.join(families)}")


def _projector(config: ProjectorConfig) -> tuple[Rule, ...]:
    names = {
        "norm.weight": "pre_proj_layernorm.weight",
        "norm.bias": "pre_proj_layernorm.bias",
        "linear_fc1.weight": "mlp.0.weight",
        "linear_fc2.weight": "mlp.2.weight",
    }
    if projector_traits(config.kind).newline:
        names["newline"] = "image_newline"
    return tuple(Rule(native=f"projector.{ours}", hf=(f"model.vision_projection.{theirs}",)) for ours, theirs in names.items())


def decoder_rules(traits: LanguageTraits, sizes: LanguageConfig) -> tuple[Rule, ...]:
    """The rules of a decoder, which transformers names alike in all families.

    Args:
        traits: which biases and norms there are.
        sizes: layers, heads, and whether the output layer has a table of its own.
    """
    rules = [Rule(native="language.embedding.word_embeddings.weight", hf=("model.embed_tokens.weight",))]
    for i in range(sizes.num_layers):
        ours, theirs = f"language.decoder.layers.{i}.", f"model.layers.{i}."
        rules.append(Rule(native=ours + "input_layernorm.weight", hf=(theirs + "input_layernorm.weight",)))
        for kind in ("weight", "bias") if traits.qkv_bias else ("weight",):
            names = tuple(f"{theirs}self_attn.{part}_proj.{kind}" for part in "qkv")
            native = f"{ours}self_attention.linear_qkv.{kind}"
            rules.append(GroupedQKV(native=native, hf=names, num_heads=sizes.num_heads, num_groups=sizes.num_kv_heads))
        for part in "qk" if traits.qk_norm else "":
            rules.append(Rule(native=f"{ours}self_attention.{part}_layernorm.weight", hf=(f"{theirs}self_attn.{part}_norm.weight",)))
        for kind in ("weight", "bias") if traits.out_bias else ("weight",):
            rules.append(Rule(native=f"{ours}self_attention.linear_proj.{kind}", hf=(f"{theirs}self_attn.o_proj.{kind}",)))
        gate_up = (theirs + "mlp.gate_proj.weight", theirs + "mlp.up_proj.weight")
        rules += [
            Rule(native=ours + "pre_mlp_layernorm.weight", hf=(theirs + "post_attention_layernorm.weight",)),
            Gated(native=ours + "mlp.linear_fc1.weight", hf=gate_up),
            Rule(native=ours + "mlp.linear_fc2.weight", hf=(theirs + "mlp.down_proj.weight",)),
        ]
    rules.append(Rule(native="language.decoder.final_layernorm.weight", hf=("model.norm.weight",)))
    if not sizes.tie_embeddings:
        rules.append(Rule(native="language.output_layer.weight", hf=("lm_head.weight",)))
    return tuple(rules)


def _prefixed(rule: Rule, prefix: str) -> Rule:
    return replace(rule, hf=tuple(prefix + name for name in rule.hf))
