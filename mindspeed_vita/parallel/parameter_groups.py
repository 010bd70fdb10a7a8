"""Which learning rate and weight decay each parameter gets: the groups of an optimizer, the same on every rank."""

from __future__ import annotations

import re
from typing import Any

import torch
import torch.distributed as dist

from mindspeed_vita.config import TrainConfig
from mindspeed_vita.parallel.chunks import chunks_of

_UNDECAYED = frozenset({"vision.class_token", "vision.position_embeddings.weight", "projector.newline"})
"""Learned vectors that have more than one dimension. Decay is for matrices that multiply their input."""
_VISION_LAYER = re.compile(r"vision\.layers\.(\d+)\.")


def learning_rate_multiplier(name: str, train: TrainConfig, num_vision_layers: int) -> float:
    """Multiplier of one parameter: its module's, times the tower's layer decay.

    Args:
        name: full parameter name, e.g. vision.layers.3.ls1.
        train: settings.
        num_vision_layers: layers of the tower; what lies before its first layer counts as layer -1.
    """
    module = name.split(".", 1)[0]
    multiplier = {"vision": train.vision_lr_mult, "projector": train.projector_lr_mult, "language": train.language_lr_mult}[module]
    if module == "vision":
        match = _VISION_LAYER.match(name)
        layer = int(match.group(1)) if match else -1
        multiplier *= train.vision_layer_decay ** (num_vision_layers - 1 - layer)
    return multiplier


def decays(name: str, parameter: torch.Tensor) -> bool:
    """Whether weight decay applies: not to biases, norms, LayerScale, and what the tower adds to its patches (class token, positions)."""
    return parameter.dim() > 1 and not name.endswith("bias") and name not in _UNDECAYED


def parameter_groups(model: Any, train: TrainConfig, num_vision_layers: int) -> list[dict[str, Any]]:
    """Groups of trainable parameters that share a learning rate and a weight decay. Collective.

    Every rank gets the same groups in the same order, some of them empty: then the schedule is the same everywhere, and a rank
    without anything to train (stage 1 behind the first pipeline stage) still has an optimizer. The multiplier is part of
    max_lr and min_lr, because only one of the core lines multiplies by itself.

    Args:
        model: of this rank; in an interleaved pipeline ModelChunks, or a list of the chunks.
        train: settings.
        num_vision_layers: layers of the tower.

    Raises:
        ValueError: no parameter trains on any rank.
    """
    members: dict[tuple[float, float], list[torch.nn.Parameter]] = {}
    for chunk in chunks_of(model):
        for name, parameter in chunk.named_parameters():
            if parameter.requires_grad:
                key = (learning_rate_multiplier(name, train, num_vision_layers), float(decays(name, parameter)))
                members.setdefault(key, []).append(parameter)
    keys: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(keys, sorted(members))
    everywhere = sorted({key for part in keys for key in part}, reverse=True)
    if not everywhere:
        raise ValueError(f"train.modules={list(train.modules)} leaves nothing to train; name at least one module that has weights")
    return [{"params": members.get(key, []), **group_settings(train, *key)} for key in everywhere]


def group_settings(train: TrainConfig, multiplier: float, decay: float) -> dict[str, Any]:
    """What megatron's optimizer keeps of a parameter group, without its parameters.

    Args:
        train: the recipe's section.
        multiplier: of the learning rate.
        decay: 1 where weight decay applies, else 0.
    """
    return {
        "max_lr": train.lr * multiplier,
        "min_lr": train.min_lr * multiplier,
        "lr_mult": 1.0,
        "wd_mult": decay,
        "is_expert_parallel": False,
        "is_decoupled_lr": False,
    }
