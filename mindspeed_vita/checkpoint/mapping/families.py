"""The rule tables: which Hugging Face names and layouts each family of checkpoints uses for which native tensors.

long_vita: the released Long-VITA layout. qwen2: plain Qwen2.5. intern_vit: InternViT's own repositories. internvl_vision,
siglip_vision, clip_vision: transformers' towers. Those of towers are in vision_families.py.
"""

from __future__ import annotations

from dataclasses import replace

from mindspeed_vita.checkpoint.mapping.rules import Gated, GroupedQKV, Rule
from mindspeed_vita.checkpoint.mapping.vision_families import VISION_FAMILIES, intern_vit_rules, vision_rules
from mindspeed_vita.config.recipe import LanguageConfig, ModelConfig, ProjectorConfig

FAMILIES = ("long_vita", "qwen2", *VISION_FAMILIES)


def family_rules(family: str, model: ModelConfig) -> tuple[Rule, ...]:
    """All rules of a family, layers expanded.

    Args:
        family: one of FAMILIES.
        model: sizes; qwen2 uses its language part only, those of towers their vision part only.

    Raises:
        ValueError: unknown family.
    """
    if family == "long_vita":
        released_vision = (_prefixed(rule, "model.vision_model.") for rule in intern_vit_rules(model.vision))
        return (*_qwen2(model.language), *released_vision, *_projector(model.projector))
    if family == "qwen2":
        return _qwen2(model.language)
    if family in VISION_FAMILIES:
        return vision_rules(family, model.vision)
    raise ValueError(f"found weight family {family!r}, expected one of {', '.join(FAMILIES)}")


def _projector(config: ProjectorConfig) -> tuple[Rule, ...]:
    names = {
        "norm.weight": "pre_proj_layernorm.weight",
        "norm.bias": "pre_proj_layernorm.bias",
        "linear_fc1.weight": "mlp.0.weight",
        "linear_fc2.weight": "mlp.2.weight",
    }
    if config.kind == "mlp_newline":
        names["newline"] = "image_newline"
    return tuple(Rule(native=f"projector.{ours}", hf=(f"model.vision_projection.{theirs}",)) for ours, theirs in names.items())


def _qwen2(config: LanguageConfig) -> tuple[Rule, ...]:
    rules = [Rule(native="language.embedding.word_embeddings.weight", hf=("model.embed_tokens.weight",))]
    for i in range(config.num_layers):
        ours, theirs = f"language.decoder.layers.{i}.", f"model.layers.{i}."
        rules.append(Rule(native=ours + "input_layernorm.weight", hf=(theirs + "input_layernorm.weight",)))
        for kind in ("weight", "bias"):
            names = tuple(f"{theirs}self_attn.{part}_proj.{kind}" for part in "qkv")
            native = f"{ours}self_attention.linear_qkv.{kind}"
            rules.append(GroupedQKV(native=native, hf=names, num_heads=config.num_heads, num_groups=config.num_kv_heads))
        gate_up = (theirs + "mlp.gate_proj.weight", theirs + "mlp.up_proj.weight")
        rules += [
            Rule(native=ours + "self_attention.linear_proj.weight", hf=(theirs + "self_attn.o_proj.weight",)),
            Rule(native=ours + "pre_mlp_layernorm.weight", hf=(theirs + "post_attention_layernorm.weight",)),
            Gated(native=ours + "mlp.linear_fc1.weight", hf=gate_up),
            Rule(native=ours + "mlp.linear_fc2.weight", hf=(theirs + "mlp.down_proj.weight",)),
        ]
    rules.append(Rule(native="language.decoder.final_layernorm.weight", hf=("model.norm.weight",)))
    if not config.tie_embeddings:
        rules.append(Rule(native="language.output_layer.weight", hf=("lm_head.weight",)))
    return tuple(rules)


def _prefixed(rule: Rule, prefix: str) -> Rule:
    return replace(rule, hf=tuple(prefix + name for name in rule.hf))
