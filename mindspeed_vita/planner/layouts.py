"""Other layouts of the same number of devices: which there are, which the recipe's checks refuse, and which to try first."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from itertools import product
from typing import get_args

from mindspeed_vita.choices import Recompute, VisionParallel
from mindspeed_vita.config import Recipe, validate
from mindspeed_vita.config.recompute import without_recomputation


@dataclass(frozen=True)
class Layout:
    """What a search changes. Data parallel is what remains of the world."""

    tp: int
    pp: int
    cp: int
    ulysses: int
    recompute: Recompute
    vision_parallel: VisionParallel

    @classmethod
    def of(cls, recipe: Recipe) -> Layout:
        """A recipe's own."""
        parallel = recipe.parallel
        return cls(parallel.tp, parallel.pp, parallel.cp, parallel.ulysses, recipe.train.recompute, parallel.vision_parallel)

    def applied(self, recipe: Recipe) -> Recipe:
        """The recipe with this layout instead of its own."""
        sizes = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "recompute"}
        train = recipe.train
        if self.recompute != train.recompute:  # its other settings need not fit another mode
            train = replace(without_recomputation(train), recompute=self.recompute)
        return replace(recipe, parallel=replace(recipe.parallel, **sizes), train=train)

    def describe(self, world: int) -> str:
        """All sizes, and of the rest what is not the default."""
        dp = world // (self.tp * self.pp * self.cp)
        ulysses = f" ulysses {self.ulysses}" if self.ulysses > 1 else ""
        tower = f", tower {self.vision_parallel}" if self.vision_parallel != "balanced" else ""
        return f"tp {self.tp} pp {self.pp} cp {self.cp}{ulysses} dp {dp}, recompute {self.recompute}{tower}"

    def distance(self, other: Layout) -> float:
        """How much differs: one for each doubling of a size, and one for each other choice."""
        doublings = sum(abs(math.log2(getattr(self, name) / getattr(other, name))) for name in ("tp", "pp", "cp", "ulysses"))
        return doublings + (self.recompute != other.recompute) + (self.vision_parallel != other.vision_parallel)


@dataclass(frozen=True)
class Refusal:
    """Layouts that the recipe's checks refuse for the same kind of reason."""

    count: int
    example: str
    reason: str
    """Of the example."""


def other_layouts(recipe: Recipe, world: int) -> tuple[list[Layout], list[Refusal]]:
    """Layouts that the recipe's checks accept, the nearest to its own first; and why the others are out, the most frequent reason first.

    Args:
        recipe: the run.
        world: number of devices.
    """
    own = Layout.of(recipe)
    accepted: list[Layout] = []
    refused: dict[str, Refusal] = {}
    for layout in _all(own, world):
        reason = refusal(layout.applied(recipe), world)
        if reason is None:
            accepted += [replace(layout, recompute=recompute) for recompute in get_args(Recompute)]
            continue
        kind = "".join(letter for letter in reason if not letter.isdigit())
        before = refused.get(kind, Refusal(0, layout.describe(world).partition(",")[0], reason))
        refused[kind] = replace(before, count=before.count + 1)
    accepted.sort(key=lambda layout: (layout.distance(own), str(layout)))
    return [layout for layout in accepted if layout != own], sorted(refused.values(), key=lambda refusal: -refusal.count)


def _all(own: Layout, world: int) -> Iterator[Layout]:
    """Every cut of the world, with the recipe's own choice of what to recompute."""
    sizes = divisors(world)
    for tp, pp, cp in product(sizes, repeat=3):
        if world % (tp * pp * cp):
            continue
        # one tensor-parallel rank holds the whole tower either way
        towers = get_args(VisionParallel) if tp > 1 else (own.vision_parallel,)
        for ulysses, tower in product((size for size in sizes if cp % size == 0), towers):
            yield Layout(tp, pp, cp, ulysses, own.recompute, tower)


def divisors(number: int) -> list[int]:
    """The numbers that divide a number, the smallest first."""
    small = [size for size in range(1, math.isqrt(number) + 1) if number % size == 0]
    return [*small, *(number // size for size in reversed(small) if size * size != number)]


def refusal(recipe: Recipe, world: int) -> str | None:
    """The first reason why the recipe does not validate."""
    try:
        validate(recipe, world)
    except ValueError as error:
        message = str(error).removeprefix(f"recipe {recipe.name!r}: ")
        return message.partition("(1) ")[2].partition("; (2) ")[0] if "(1) " in message else message
    return None
