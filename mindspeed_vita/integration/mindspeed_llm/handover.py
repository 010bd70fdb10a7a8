"""Where a run's weights come from: its own checkpoint, one of MindSpeed-LLM's for its own loader, or native ones for ours."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from mindspeed_vita.config import Recipe
from mindspeed_vita.integration.mindspeed_llm.arguments import arguments_from_recipe
from mindspeed_vita.integration.mindspeed_llm.flags import TRACKER


def holds_checkpoint(folder: str) -> bool:
    """Whether Megatron would find a checkpoint in a folder."""
    return bool(folder) and (Path(folder) / TRACKER).is_file()


def resumes(recipe: Recipe) -> bool:
    """Whether the run continues from what MindSpeed-LLM saved in checkpoint.directory."""
    return recipe.checkpoint.resume and holds_checkpoint(recipe.checkpoint.directory)


def command_line(recipe: Recipe, passed_on: Sequence[str] = ()) -> list[str]:
    """What MindSpeed-LLM is told to run a recipe, as `arguments_from_recipe`, with a start from its own checkpoints.

    Args:
        recipe: a run; init_from may name what MindSpeed-LLM saved, which its loader then takes over without the optimizer.
        passed_on: flags of the user's, which come last and so count; a --load among them stands.

    Raises:
        ValueError: as arguments_from_recipe, or a gate holds back what init_from names.
    """
    start = recipe.checkpoint.init_from
    given = any(word.split("=")[0] == "--load" for word in passed_on)
    # a run of adapters loads what they start from itself, whatever its format
    if given or recipe.lora.rank or resumes(recipe) or not holds_checkpoint(start):
        return [*arguments_from_recipe(recipe), *passed_on]
    from mindspeed_vita.checkpoint.gates import check_handover  # imports torch

    check_handover(Path(start))
    told = replace(recipe, checkpoint=replace(recipe.checkpoint, init_from="", resume=False))
    return [*arguments_from_recipe(told), "--load", start, "--finetune", *passed_on]
