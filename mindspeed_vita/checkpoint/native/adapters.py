"""The adapters of a model in native checkpoints: which part of which tensor a rank holds, and what a resumed run must not change."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from mindspeed_vita.config import Recipe, recipe_to_dict
from mindspeed_vita.models.lora import adapters_of

_MAY_CHANGE = ("base", "base_fingerprint")
"""Where the base lies may change. That it is the same one is checked where it is opened."""


def sharded_adapters(model: torch.nn.Module) -> dict[str, Any]:
    """Name in this rank's model -> ShardedTensor under the name in the whole model."""
    from megatron.core.transformer.utils import make_sharded_tensors_for_checkpoint

    sharded = {}
    for name, adapter in adapters_of(model):
        own = dict(adapter.named_parameters(recurse=False))
        entries = make_sharded_tensors_for_checkpoint(own, f"{adapter.name}.", adapter.axes(), ())
        sharded.update({f"{name}.{matrix}": entries[f"{adapter.name}.{matrix}"] for matrix in own})
    return sharded


def check_adapters(folder: Path, saved_recipe: Mapping[str, Any], recipe: Recipe) -> None:
    """Refuses to resume with other adapters.

    Args:
        folder: of the checkpoint, for the message.
        saved_recipe: the recipe that it was written with, as nested plain values.
        recipe: the run's.

    Raises:
        ValueError: naming every key that differs, with both values.
    """
    plain = recipe_to_dict(Recipe())["lora"]
    saved, wanted = {**plain, **saved_recipe.get("lora", {})}, recipe_to_dict(recipe)["lora"]
    keys = [key for key in plain if key not in _MAY_CHANGE and saved[key] != wanted[key]]
    if keys:
        differing = [f"lora.{key}: {saved[key]} there, {wanted[key]} here" for key in keys]
        raise ValueError(
            f"{folder} was trained with other adapters ({'; '.join(differing)}); restore them to resume, or choose another "
            "checkpoint.directory"
        )
