"""The rule tables: which Hugging Face names and layouts each family of checkpoints uses for which native tensors.

long_vita: the released Long-VITA layout. qwen2: plain Qwen2.5. intern_vit: InternViT's own repositories.
internvl_vision: transformers' InternVLVisionModel.
"""

from __future__ import annotations

from dataclasses import replace

from mindspeed_vita.checkpoint.mapping import Gated, GroupedQKV, HeadMajorQKV, LeadingOne, Rule
from mindspeed_vita.config.recipe import LanguageConfig, ModelConfig, ProjectorConfig, VisionConfig

FAMILIES = ("long_vita", "qwen2", "intern_vit", "internvl_vision")


def family_rules(family: str, model: ModelConfig) -> tuple[Rule, ...]:
    """All rules of a family, layers expanded.

    Args:
        family: one of FAMILIES.
        model: sizes; qwen2 uses its language part only, intern_vit and internvl_vision its vision part only.

    Raises:
        ValueError: unknown family.
    """
    if family == "long_vita":
        released_vision = (_prefixed(rule, "model.vision_model.") for rule in _intern_vit(model.vision))
        return (*_qwen2(model.language), *released_vision, *_projector(model.projector))
    if family == "qwen2":
        return _qwen2(model.language)
    if family == "intern_vit":
        return _intern_vit(model.vision)
    if family == "internvl_vision":
        return _internvl_vision(model.vision)
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


def _intern_vit(config: VisionConfig) -> tuple[Rule, ...]:
    rules = [
        Rule(native="vision.class_token", hf=("embeddings.class_embedding",)),
        LeadingOne(native="vision.position_embeddings.weight", hf=("embeddings.position_embedding",)),
        Rule(native="vision.conv1.weight", hf=("embeddings.patch_embedding.weight",)),
        Rule(native="vision.conv1.bias", hf=("embeddings.patch_embedding.bias",)),
    ]
    same = {
        "self_attention.linear_proj": "attn.proj",
        "input_layernorm": "norm1",
        "pre_mlp_layernorm": "norm2",
        "mlp.linear_fc1": "mlp.fc1",
        "mlp.linear_fc2": "mlp.fc2",
    }
    for j in range(config.num_layers):
        ours, theirs = f"vision.layers.{j}.", f"encoder.layers.{j}."
        for kind in ("weight", "bias"):
            native = f"{ours}self_attention.linear_qkv.{kind}"
            rules.append(HeadMajorQKV(native=native, hf=(f"{theirs}attn.qkv.{kind}",), num_heads=config.num_heads))
            rules += [Rule(native=f"{ours}{a}.{kind}", hf=(f"{theirs}{b}.{kind}",)) for a, b in same.items()]
        rules += [Rule(native=ours + name, hf=(theirs + name,)) for name in ("ls1", "ls2")]
    return tuple(rules)


def _internvl_vision(config: VisionConfig) -> tuple[Rule, ...]:
    rules = [
        Rule(native="vision.class_token", hf=("embeddings.cls_token",)),
        LeadingOne(native="vision.position_embeddings.weight", hf=("embeddings.position_embeddings",)),
        Rule(native="vision.conv1.weight", hf=("embeddings.patch_embeddings.projection.weight",)),
        Rule(native="vision.conv1.bias", hf=("embeddings.patch_embeddings.projection.bias",)),
    ]
    same = {
        "self_attention.linear_proj": "attention.projection_layer",
        "input_layernorm": "layernorm_before",
        "pre_mlp_layernorm": "layernorm_after",
        "mlp.linear_fc1": "mlp.fc1",
        "mlp.linear_fc2": "mlp.fc2",
    }
    for j in range(config.num_layers):
        ours, theirs = f"vision.layers.{j}.", f"encoder.layer.{j}."
        for kind in ("weight", "bias"):
            names = tuple(f"{theirs}attention.{part}_proj.{kind}" for part in "qkv")
            native = f"{ours}self_attention.linear_qkv.{kind}"
            # (heads, 3, width) is the grouped layout with one query head a group.
            rules.append(GroupedQKV(native=native, hf=names, num_heads=config.num_heads, num_groups=config.num_heads))
            rules += [Rule(native=f"{ours}{a}.{kind}", hf=(f"{theirs}{b}.{kind}",)) for a, b in same.items()]
        rules += [Rule(native=f"{ours}ls{n}", hf=(f"{theirs}lambda_{n}",)) for n in (1, 2)]
    return tuple(rules)


def _prefixed(rule: Rule, prefix: str) -> Rule:
    return replace(rule, hf=tuple(prefix + name for name in rule.hf))
