"""What tests call in the process for traces. Results are plain values."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mindspeed_vita.config import Recipe, recipe_from_dict, recipe_to_dict
from mindspeed_vita.planner.proof import CONTENT, Case, proof_recipe
from mindspeed_vita.planner.trace.result import Trace
from mindspeed_vita.planner.trace.step import stage_ranks, trace
from tests.mutants import mutated

ROOT = Path(__file__).resolve().parents[3]


def small(case: Case, rank: int = 0) -> Trace:
    """The trace of a case of the proof."""
    return trace(proof_recipe(case, "small"), case.world, rank, content=CONTENT)


def small_with_a_leak(case: Case) -> Trace:
    """The same, of a model in which each layer keeps the input of its feed-forward part."""
    line = "        gate_and_up, bias = self.linear_fc1(hidden_states)\n"
    with mutated("mindspeed_vita.models.language", line, f"        self.kept = hidden_states\n{line}"):
        return small(case)


def with_layers(recipe: Recipe, *, decoder: int, tower: int) -> Recipe:
    """A recipe with another number of layers."""
    settings: dict[str, Any] = recipe_to_dict(recipe)
    settings["model"]["language"]["num_layers"] = decoder
    settings["model"]["vision"]["num_layers"] = tower
    return recipe_from_dict(settings)


def stages(recipe: Recipe) -> dict[str, Trace]:
    """One rank of each kind of pipeline stage of a recipe on its smallest world.

    Layers repeat, so each stage has one of the decoder and the tower has two. Two packs follow each other through a pipeline.
    """
    layout = recipe.parallel
    world = layout.tp * layout.pp * layout.cp
    short = with_layers(recipe, decoder=layout.pp, tower=2)
    micro_batches = 1 if layout.pp == 1 else 2
    return {kind: trace(short, world, rank, micro_batches=micro_batches) for kind, rank in stage_ranks(short, world).items()}


def interleaved(case: Case) -> dict[str, Trace]:
    """Both stages of a case of the proof, each with two chunks of a layer."""
    settings: dict[str, Any] = recipe_to_dict(proof_recipe(case, "small"))
    settings["model"]["language"].update(num_layers=4)
    settings["parallel"]["virtual_stages"] = 2
    settings["train"]["global_batch"] = 4
    recipe = recipe_from_dict(settings)
    return {kind: trace(recipe, case.world, rank, content=CONTENT) for kind, rank in stage_ranks(recipe, case.world).items()}


def uneven(case: Case) -> dict[str, Trace]:
    """Both stages of a case of the proof with a layer in the first and the others in the second, and a table that they share."""
    settings: dict[str, Any] = recipe_to_dict(proof_recipe(case, "small"))
    settings["model"]["language"].update(num_layers=4, tie_embeddings=True)
    settings["parallel"]["stage_layers"] = [1, 3]
    recipe = recipe_from_dict(settings)
    return {kind: trace(recipe, case.world, rank, content=CONTENT) for kind, rank in stage_ranks(recipe, case.world).items()}
