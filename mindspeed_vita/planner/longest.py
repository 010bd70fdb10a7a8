"""The longest packs that a recipe's layout has the memory for."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Optional

from mindspeed_vita.config import Recipe, validate
from mindspeed_vita.planner.children import each_in_a_child, quiet
from mindspeed_vita.planner.device_memory import extras
from mindspeed_vita.planner.search import Longest, largest_that_fits
from mindspeed_vita.planner.trace.packs import PackContent

_AT_LEAST = 1024
"""Lengths are multiples of at least so many tokens."""


@dataclass(frozen=True, kw_only=True)
class Question:
    """Arguments of `longest_context`."""

    recipe: Recipe
    world: int
    device: str
    memory: int
    limit: int
    content: Optional[PackContent] = None


def longest_context(question: Question) -> Longest:
    """The longest data.seq_length that fits, found by traces in a process of their own. Its memory is that of the fullest rank.

    Args:
        question: recipe and world; device as for device_memory.extras; bytes of a device; the longest length to try; what fills the packs.

    Raises:
        ValueError: the recipe does not fit the world.
    """
    validate(question.recipe, question.world)
    return each_in_a_child(_search, [question], 1)[0]


def longest_positions(recipe: Recipe) -> int:
    """How far a search goes: the language model's positions, or the recipe's own packs where those are longer."""
    return max(recipe.model.language.max_positions, recipe.data.seq_length)


def _search(question: Question) -> Longest:
    from mindspeed_vita.planner.trace.step import stage_ranks, trace

    recipe, world = question.recipe, question.world
    multiple = 2 * recipe.parallel.cp * recipe.parallel.tp
    step = -(-_AT_LEAST // multiple) * multiple

    def memory_of(length: int) -> int:
        changed = replace(recipe, data=replace(recipe.data, seq_length=length))
        found = [trace(changed, world, rank, content=question.content) for rank in stage_ranks(changed, world).values()]
        return max(one.peak + sum(extra.bytes for extra in extras(question.device, one)) for one in found)

    with quiet(recipe):
        return largest_that_fits(
            memory_of, start=recipe.data.seq_length, step=step, limit=max(question.limit, step), memory=question.memory
        )
