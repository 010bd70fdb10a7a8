"""The rule tables of the vision towers: native names on the left, those of each family of checkpoints on the right."""

from __future__ import annotations

from mindspeed_vita.checkpoint.mapping.rules import Flat, GroupedQKV, HeadMajorQKV, LeadingOne, Rule
from mindspeed_vita.config import TowerTraits, VisionConfig, tower_traits

VISION_FAMILIES = ("intern_vit", "internvl_vision", "siglip_vision", "clip_vision")

LEFT_OUT: dict[str, tuple[str, ...]] = {
    "siglip_vision": ("text_model.", "logit_scale", "logit_bias", "head."),
    "clip_vision": (
        *("text_model.", "logit_scale", "text_projection.", "visual_projection."),
        *("post_layernorm.", "embeddings.position_ids"),
    ),
}
"""What SigLIP and CLIP models hold beside the tower: the text side, and what pools the patches into one vector."""
TOWER_PREFIX = "vision_model."
"""In front of the tower's names where the folder holds the whole model, or was written by transformers 4; then it is cut off."""

_KINDS = ("weight", "bias")


def intern_vit_rules(config: VisionConfig) -> tuple[Rule, ...]:
    """InternViT's own names, which the released Long-VITA weights use; other towers export under them too."""
    traits = tower_traits(config.tower)
    rules = [
        LeadingOne(native="vision.position_embeddings.weight", hf=("embeddings.position_embedding",)),
        *_copies("vision.conv1", "embeddings.patch_embedding", _KINDS if traits.patch_bias else ("weight",)),
    ]
    if traits.class_token:
        rules.insert(0, Rule(native="vision.class_token", hf=("embeddings.class_embedding",)))
    rules += _outer_norms(config, traits, "pre_layernorm", "post_layernorm")
    for j in range(config.num_layers):
        ours, theirs = f"vision.layers.{j}.", f"encoder.layers.{j}."
        for kind in _KINDS if config.qkv_bias else ("weight",):
            native = f"{ours}self_attention.linear_qkv.{kind}"
            rules.append(HeadMajorQKV(native=native, hf=(f"{theirs}attn.qkv.{kind}",), num_heads=config.num_heads))
        rules += _copies(ours + "self_attention.linear_proj", theirs + "attn.proj")
        rules += _layer(config, traits, ours, theirs, norms=("norm1", "norm2"), scales=("ls1", "ls2"), qk="attn.")
    return tuple(rules)


def internvl_vision_rules(config: VisionConfig) -> tuple[Rule, ...]:
    """transformers' InternVLVisionModel."""
    traits = tower_traits(config.tower)
    rules: list[Rule] = [
        Rule(native="vision.class_token", hf=("embeddings.cls_token",)),
        LeadingOne(native="vision.position_embeddings.weight", hf=("embeddings.position_embeddings",)),
        *_copies("vision.conv1", "embeddings.patch_embeddings.projection"),
    ]
    for j in range(config.num_layers):
        ours, theirs = f"vision.layers.{j}.", f"encoder.layer.{j}."
        rules += _separate_qkv(config, ours, theirs + "attention.")
        rules += _copies(ours + "self_attention.linear_proj", theirs + "attention.projection_layer")
        norms, scales = ("layernorm_before", "layernorm_after"), ("lambda_1", "lambda_2")
        rules += _layer(config, traits, ours, theirs, norms=norms, scales=scales, qk="attention.")
    return tuple(rules)


def contrastive_rules(config: VisionConfig) -> tuple[Rule, ...]:
    """transformers' SiglipVisionModel and CLIPVisionModel, whose layers have the same names."""
    traits = tower_traits(config.tower)
    rules: list[Rule] = [
        Rule(native="vision.position_embeddings.weight", hf=("embeddings.position_embedding.weight",)),
        *_copies("vision.conv1", "embeddings.patch_embedding", _KINDS if traits.patch_bias else ("weight",)),
    ]
    if traits.class_token:
        rules.append(Flat(native="vision.class_token", hf=("embeddings.class_embedding",), shape=(1, 1, config.hidden_size)))
    rules += _outer_norms(config, traits, "pre_layrnorm", "post_layernorm")
    for j in range(config.num_layers):
        ours, theirs = f"vision.layers.{j}.", f"encoder.layers.{j}."
        rules += _separate_qkv(config, ours, theirs + "self_attn.")
        rules += _copies(ours + "self_attention.linear_proj", theirs + "self_attn.out_proj")
        rules += _layer(config, traits, ours, theirs, norms=("layer_norm1", "layer_norm2"), scales=("", ""), qk="self_attn.")
    return tuple(rules)


def vision_rules(family: str, config: VisionConfig) -> tuple[Rule, ...]:
    """The rules of one of VISION_FAMILIES.

    Raises:
        ValueError: the tower is no tower of that family.
    """
    table = {"intern_vit": intern_vit_rules, "internvl_vision": internvl_vision_rules}.get(family, contrastive_rules)
    wanted = {"internvl_vision": "intern_vit", "siglip_vision": "siglip", "clip_vision": "clip"}.get(family, config.tower)
    if tower_traits(wanted) != tower_traits(config.tower):
        raise ValueError(f"weights of the family {family} are of the tower {wanted!r}, model.vision.tower is {config.tower!r}")
    return table(config)


def _copies(native: str, hf: str, kinds: tuple[str, ...] = _KINDS) -> list[Rule]:
    return [Rule(native=f"{native}.{kind}", hf=(f"{hf}.{kind}",)) for kind in kinds]


def _norm_kinds(config: VisionConfig) -> tuple[str, ...]:
    return _KINDS if config.norm == "layer_norm" else ("weight",)


def _outer_norms(config: VisionConfig, traits: TowerTraits, first: str, final: str) -> list[Rule]:
    rules = _copies("vision.first_layernorm", first, _norm_kinds(config)) if traits.first_norm else []
    return rules + (_copies("vision.final_layernorm", final, _norm_kinds(config)) if traits.final_norm else [])


def _separate_qkv(config: VisionConfig, ours: str, theirs: str) -> list[Rule]:
    rules: list[Rule] = []
    for kind in _KINDS if config.qkv_bias else ("weight",):
        names = tuple(f"{theirs}{part}_proj.{kind}" for part in "qkv")
        # (heads, 3, width) is the grouped layout with one query head a group.
        native = f"{ours}self_attention.linear_qkv.{kind}"
        rules.append(GroupedQKV(native=native, hf=names, num_heads=config.num_heads, num_groups=config.num_heads))
    return rules


def _layer(
    config: VisionConfig, traits: TowerTraits, ours: str, theirs: str, *, norms: tuple[str, str], scales: tuple[str, str], qk: str
) -> list[Rule]:
    """Norms, MLP, LayerScale and the norms of queries and keys of one layer."""
    rules: list[Rule] = []
    for native, hf in zip(("input_layernorm", "pre_mlp_layernorm"), norms):
        rules += _copies(ours + native, theirs + hf, _norm_kinds(config))
    for name in ("fc1", "fc2"):
        rules += _copies(f"{ours}mlp.linear_{name}", f"{theirs}mlp.{name}")
    if traits.layer_scale:
        rules += [Rule(native=ours + a, hf=(theirs + b,)) for a, b in zip(("ls1", "ls2"), scales)]
    if config.qk_norm:
        rules += [Rule(native=f"{ours}self_attention.{part}_norm.weight", hf=(f"{theirs}{qk}{part}_norm.weight",)) for part in "qk"]
    return rules
