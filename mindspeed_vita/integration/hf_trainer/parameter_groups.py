"""Parameter groups of the exported model: a learning rate for each module, layer decay in the tower, no decay of biases and norms."""

from __future__ import annotations

import math
import re
from typing import Any

import torch

from mindspeed_vita.config import TrainConfig
from mindspeed_vita.integration.hf_trainer.adapters import plain_name
from mindspeed_vita.integration.hf_trainer.packed_model import module_of
from mindspeed_vita.parallel.parameter_groups import decays, learning_rate_multiplier

_LAYER = re.compile(r"model\.vision_model\.encoder\.layers\.(\d+)\.")


def native_place(name: str) -> str:
    """Where a parameter of the export belongs in our names, as far as its learning rate depends on that."""
    name = plain_name(name)
    layer = _LAYER.match(name)
    return f"vision.layers.{layer[1]}.{name[layer.end():]}" if layer else f"{module_of(name)}.{name}"


def parameter_groups(model: torch.nn.Module, train: TrainConfig, num_vision_layers: int) -> list[dict[str, Any]]:
    """Groups of trainable parameters that share a learning rate and a weight decay, the same on every rank.

    Args:
        model: the exported model, also one that ZeRO-3 has cut up.
        train: settings.
        num_vision_layers: layers of the tower.
    """
    members: dict[tuple[float, bool], list[torch.nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            place = native_place(name)
            shape = torch.Size(getattr(parameter, "ds_shape", parameter.shape))  # ZeRO-3 leaves parameters empty
            key = (learning_rate_multiplier(place, train, num_vision_layers), decays(name, torch.empty(shape, device="meta")))
            members.setdefault(key, []).append(parameter)
    return [
        {"params": members[key], "lr": train.lr * key[0], "weight_decay": train.weight_decay * key[1]}
        for key in sorted(members, reverse=True)
    ]


def share_of_rate(train: TrainConfig, step: int) -> float:
    """Learning rate of an update as a share of its peak: linear warm-up, then cosine.

    Args:
        train: settings.
        step: updates made before this one.
    """
    number, warmup = step + 1, min(round(train.warmup_fraction * train.steps), train.steps - 1)
    if warmup and number <= warmup:
        return number / warmup
    lowest = train.min_lr / train.lr
    if number > train.steps:
        return lowest
    done = (number - warmup) / (train.steps - warmup)
    return lowest + 0.5 * (math.cos(math.pi * done) + 1) * (1 - lowest)
