"""A tower with weights converted from transformers' own, beside that one; runs in the workers of a layout's pool."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch

from mindspeed_vita.checkpoint.hf.load import resize_positions
from mindspeed_vita.checkpoint.mapping.families import family_rules
from mindspeed_vita.checkpoint.mapping.rules import convert_to_native
from mindspeed_vita.checks.parity.full_tensors import take_slice
from mindspeed_vita.config import ModelConfig, VisionConfig, recipe_from_dict, tower_traits
from mindspeed_vita.parallel.layout import ParallelLayout

# Real widths, heads and head widths; one layer, and for the 6B a short MLP and small tiles, which no head depends on.
CASES: dict[str, dict[str, Any]] = {
    "intern_vit_6b": {"family": "internvl_vision", "num_layers": 1, "ffn_hidden_size": 1280, "tile_size": 112},
    "siglip_400m": {"family": "siglip_vision", "num_layers": 1, "from_size": 384},
    "clip_l": {"family": "clip_vision", "num_layers": 1, "from_size": 336},
}
NUM_TILES = 2


def vision_of(case: str) -> VisionConfig:
    """The preset's tower, cut down."""
    changes = {key: value for key, value in CASES[case].items() if key not in ("family", "from_size")}
    return recipe_from_dict({"model": {"vision": {"preset": case, **changes}}}).model.vision


def run(layout: ParallelLayout, case: str) -> dict[str, Any]:
    """Features of transformers' tower and of ours, and our gradients against those of transformers' patch embedding."""
    from megatron.core.transformer.transformer_config import TransformerConfig

    from mindspeed_vita.models.vision import towers
    from mindspeed_vita.models.vision.linears import sharded_linears

    vision, family = vision_of(case), CASES[case]["family"]
    torch.manual_seed(0)
    with torch.device("meta"):  # built without values: drawing initial ones would take longer than the test
        reference = _reference(vision, CASES[case].get("from_size", vision.tile_size))
    state = _noise({name: parameter.shape for name, parameter in reference.named_parameters()})
    reference.load_state_dict(state, strict=True, assign=True)
    native = _native(reference, vision, family)
    settings = TransformerConfig(num_layers=1, hidden_size=64, num_attention_heads=4, tensor_model_parallel_size=layout.tp_size)
    linears = sharded_linears(settings, tp_rank=layout.tp_rank, tp_size=layout.tp_size)
    tower = towers.build(vision.tower, vision, transformer_config=settings, linears=linears)
    parameters = dict(tower.named_parameters())
    assert parameters.keys() == {name.removeprefix("vision.") for name in native}, parameters.keys() ^ native.keys()
    with torch.no_grad():
        for name, whole in native.items():
            part = take_slice(name, whole, layout.tp_rank, layout.tp_size, tower_cut=True, heads=vision.num_heads)
            parameters[name.removeprefix("vision.")].copy_(part)
    tiles = torch.randn(NUM_TILES, 3, vision.tile_size, vision.tile_size)
    expected = _features(reference, tiles, vision)
    found = tower(tiles)
    # what follows a cut tower gives each rank the gradient of its own rows
    weights = torch.randn(found.shape)
    (found * weights)[layout.tp_rank :: layout.tp_size].sum().backward()
    (expected * weights).sum().backward()
    ours, theirs = tower.get_parameter("conv1.weight").grad, _patch_embedding(reference).weight.grad
    padded = [name for name, parameter in parameters.items() if hasattr(parameter, "num_heads")]
    return {
        "error": float((found - expected).abs().max() / expected.abs().max()),
        "gradient": float((ours - theirs).abs().max() / theirs.abs().max()),
        "heads": tower.layers[0].self_attention.num_heads,
        "padded": len(padded),
        "zero": all(_zero_heads(parameters[name], layout.tp_rank) for name in padded if "norm" not in name),
    }


def _zero_heads(parameter: Any, tp_rank: int) -> bool:
    """The gradient of the zero heads is zero, and there is one elsewhere."""
    parts = parameter.grad.chunk(parameter.held_heads, parameter.partition_dim)
    real = [bool(part.any()) for place, part in enumerate(parts) if tp_rank * parameter.held_heads + place < parameter.num_heads]
    return all(real) and not any(bool(part.any()) for part in parts[len(real) :])


def _reference(vision: VisionConfig, size: int) -> torch.nn.Module:
    import transformers

    common = {
        "hidden_size": vision.hidden_size, "intermediate_size": vision.ffn_hidden_size, "num_hidden_layers": vision.num_layers,
        "num_attention_heads": vision.num_heads, "image_size": size, "patch_size": vision.patch_size, "layer_norm_eps": vision.norm_eps,
    }  # fmt: skip
    if vision.tower == "siglip":
        return transformers.SiglipVisionModel(transformers.SiglipVisionConfig(**common, vision_use_head=False))
    if vision.tower == "clip":
        return transformers.CLIPVisionModel(transformers.CLIPVisionConfig(**common))
    settings = transformers.InternVLVisionConfig(
        **common, attention_bias=vision.qkv_bias, use_qk_norm=vision.qk_norm, norm_type=vision.norm, use_mean_pooling=True
    )
    model = transformers.InternVLVisionModel(settings)
    model.layernorm = torch.nn.Identity()  # for the pooled vector, which the tower does not have
    return model


def _features(reference: torch.nn.Module, tiles: torch.Tensor, vision: VisionConfig) -> torch.Tensor:
    options = {"interpolate_pos_encoding": True} if vision.tower in ("siglip", "clip") else {}
    features = reference(tiles, **options).last_hidden_state
    return features[:, 1:] if tower_traits(vision.tower).class_token else features


def _patch_embedding(reference: torch.nn.Module) -> Any:
    return next(module for module in reference.modules() if isinstance(module, torch.nn.Conv2d))


def _native(reference: torch.nn.Module, vision: VisionConfig, family: str) -> dict[str, torch.Tensor]:
    state = {name.removeprefix("vision_model."): p.detach() for name, p in reference.named_parameters()}
    if family == "clip_vision":
        state = {name: tensor for name, tensor in state.items() if not name.startswith("post_layernorm.")}
    native = dict(convert_to_native(state, family_rules(family, ModelConfig(vision=vision))))
    name = "vision.position_embeddings.weight"
    native[name] = resize_positions(native[name], vision.grid, has_class=tower_traits(vision.tower).class_token)
    return native


def _noise(shapes: Mapping[str, torch.Size]) -> dict[str, torch.Tensor]:
    """Weights cut from one stretch of noise at shifting places; LayerScale and norms away from one."""
    noise = torch.randn(1 << 24)
    weights = {}
    for place, (name, shape) in enumerate(shapes.items()):
        cut = noise[7919 * place % (1 << 22) :][: math.prod(shape)].view(shape)
        is_scale = "lambda" in name or ("norm" in name and name.endswith("weight")) or "layrnorm.weight" in name
        weights[name] = 1 + 0.2 * cut if is_scale else 0.02 * cut
    return weights
