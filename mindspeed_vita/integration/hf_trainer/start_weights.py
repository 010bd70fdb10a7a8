"""What a run on transformers' Trainer would start from, for `vita check`: names and headers, no weights."""

from __future__ import annotations

from pathlib import Path
from typing import Optional

from mindspeed_vita.checkpoint import gates
from mindspeed_vita.checkpoint.native import atomic, step_folder
from mindspeed_vita.checkpoint.native.step_folder import differing_keys
from mindspeed_vita.checkpoint.source import SourceOptions, current_folder, open_source
from mindspeed_vita.config import ModelConfig, Recipe
from mindspeed_vita.integration.hf_trainer import checkpoints


def check_same_architecture(origin: Path, there: ModelConfig, here: ModelConfig) -> None:
    """Refuses weights of another architecture. Positions may be stretched.

    Args:
        origin: of the weights.
        there, here: their architecture, and this run's.

    Raises:
        ValueError: naming every key that differs, with both values.
    """
    differing = {key: values for key, values in differing_keys(there, here).items() if not key.startswith("language.rope_")}
    if differing:
        listed = "; ".join(f"model.{key}: {old} there, {new} here" for key, (old, new) in differing.items())
        raise ValueError(f"checkpoint {origin} is of another architecture ({listed}); use the recipe it was trained with")


def named_start(recipe: Recipe, base: Optional[Path] = None) -> Path:
    """The folder of the weights to start from. Weights that a gate holds back are refused.

    Args:
        recipe: the run.
        base: of the run's adapters; None: checkpoint.init_from is what it starts from.

    Raises:
        ValueError: none is named, or a gate holds it back.
    """
    if base is None and not recipe.checkpoint.init_from:
        raise ValueError("--engine hf starts from weights: set checkpoint.init_from to an export, or to a run or step folder")
    if base is None:
        step_folder.check_start(recipe)
    origin = current_folder(base or Path(recipe.checkpoint.init_from))
    gates.check_handover(origin)
    return origin


def describe_start(recipe: Recipe) -> str:
    """One line: the checkpoint that a run continues from, or the weights that it starts from.

    Raises:
        ValueError: nothing to start from, or another architecture or other settings.
    """
    directory = recipe.checkpoint.directory
    newest = checkpoints.newest(Path(directory))
    if newest is not None and recipe.checkpoint.resume:
        step_folder.check_architecture(newest, recipe.model, resume=True)
        step_folder.check_training(newest, recipe, engine="hf")
        return f"continues from {newest}"
    origin = named_start(recipe)
    if (origin / atomic.CHECKSUMS).is_file():
        step_folder.check_architecture(origin, recipe.model)
    else:
        options = SourceOptions(tokenizer=recipe.data.tokenizer, compare=False)
        check_same_architecture(origin, open_source(origin, options).recipe.model, recipe.model)
    return f"start from {origin}; checkpoints go to {directory}"
