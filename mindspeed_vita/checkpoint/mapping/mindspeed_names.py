"""Weight names of MindSpeed-LLM checkpoints, the released Long-VITA weights among them, <-> native names, of one rank.

There the decoder stands at the top level and the rest under external_feature_model.; layouts inside a tensor are the same.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Optional

import torch
import torch.distributed as dist

from mindspeed_vita.checkpoint.mapping.rules import check_names

_PROJECTOR = {
    "projector.norm.": "external_feature_model.pre_proj_layernorm.",
    "projector.": "external_feature_model.vision_projection.encoder.",
}
_FUSED_NORMS = {  # TransformerEngine keeps a norm inside the linear layer that follows it
    r"self_attention\.linear_qkv\.layer_norm_(weight|bias)": r"input_layernorm.\1",
    r"mlp\.linear_fc1\.layer_norm_(weight|bias)": r"pre_mlp_layernorm.\1",
}
_INTO_LINEAR = {
    r"input_layernorm\.(weight|bias)$": r"self_attention.linear_qkv.layer_norm_\1",
    r"pre_mlp_layernorm\.(weight|bias)$": r"mlp.linear_fc1.layer_norm_\1",
}
_STATE = "_extra_state"
_STRAY = "unused"
"""A parameter of the released weights that multiplies nothing but zero."""


def to_mindspeed(name: str) -> str:
    """The name there of a native weight. Others (extra states) stay."""
    if name.startswith("language."):
        return name.removeprefix("language.")
    if name.startswith("vision."):
        return "external_feature_model.vit." + re.sub(r"^layers\.", "decoder.layers.", name.removeprefix("vision."))
    for ours, theirs in _PROJECTOR.items():
        if name.startswith(ours):
            return theirs + name.removeprefix(ours)
    return name


def to_megatron(name: str) -> str:
    """As to_mindspeed, with the names of TransformerEngine's layers: a norm is part of the linear layer that follows it."""
    if re.search(r"layers\.\d+\.", name):
        for fused, plain in _INTO_LINEAR.items():
            name = re.sub(fused, plain, name)
    return to_mindspeed(name)


def native_name(name: str) -> Optional[str]:
    """The native name of a weight there, or None for what holds no weight: the stray parameter, and TransformerEngine's extra states."""
    if name == _STRAY or name.endswith(f".{_STATE}"):
        return None
    for pattern, plain in _FUSED_NORMS.items():
        name = re.sub(pattern, plain, name)
    if name.startswith("external_feature_model.vit."):
        return "vision." + re.sub(r"^decoder\.layers\.", "layers.", name.removeprefix("external_feature_model.vit."))
    for ours, theirs in _PROJECTOR.items():
        if name.startswith(theirs):
            return ours + name.removeprefix(theirs)
    return f"language.{name}" if name.startswith(("embedding.", "decoder.", "output_layer.")) else name


def from_mindspeed(found: Mapping[str, Any], wanted: Mapping[str, Any], group: Optional[dist.ProcessGroup] = None) -> dict[str, Any]:
    """One rank's weights under native names. Collective over the group where the tower was split.

    Args:
        found: a model's state dict as MindSpeed-LLM saved it, or under native names.
        wanted: the state dict of the model that is loaded.
        group: tensor-parallel group; its ranks hold the parts of a split tower in order.

    Raises:
        ValueError: a weight is missing, unexpected or of another shape.
    """
    weights = {native: value for name, value in found.items() if (native := native_name(name)) is not None and native != _STATE}
    check_names(weights, (name for name in wanted if not name.endswith(_STATE)), side="MindSpeed-LLM")
    for name, value in weights.items():
        if name.startswith(("vision.", "projector.")) and value.shape != wanted[name].shape:
            weights[name] = _joined(name, value, wanted[name].shape, group)
        if weights[name].shape != wanted[name].shape:
            raise ValueError(
                f"the MindSpeed-LLM weights do not fit this architecture or layout; {name} is {tuple(value.shape)}, "
                f"expected {tuple(wanted[name].shape)}: use the sizes and the --tensor-model-parallel-size they were saved with"
            )
    # what is not a weight: the model's own, or what this model would have saved
    return {**weights, **{name: found.get(name, value) for name, value in wanted.items() if name.endswith(_STATE)}}


def _joined(name: str, part: torch.Tensor, shape: torch.Size, group: Optional[dist.ProcessGroup]) -> torch.Tensor:
    """A tower's weight from the parts that tensor-parallel ranks saved: they follow each other along the axis that is too short."""
    axes = [axis for axis, (found, whole) in enumerate(zip(part.shape, shape)) if found != whole]
    size = dist.get_world_size(group) if group is not None else 1
    if part.dim() != len(shape) or len(axes) != 1 or part.shape[axes[0]] * size != shape[axes[0]]:
        raise ValueError(
            f"the MindSpeed-LLM weights do not fit this tower; {name} is {tuple(part.shape)} on each of {size} ranks, "
            f"expected {tuple(shape)}"
        )
    parts: list[Any] = [None] * size
    dist.all_gather_object(parts, part.cpu(), group=group)
    return torch.cat(parts, dim=axes[0])
