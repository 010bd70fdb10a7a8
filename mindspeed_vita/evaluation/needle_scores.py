"""From the answers of a needle test to the cells of its grid, its table, and whether it passes."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mindspeed_vita.evaluation.needle_cases import TASKS
from mindspeed_vita.wording import aligned

_LEAK = 1e-3
"""A control is above chance where guessing would be as good less often than this."""


@dataclass(frozen=True)
class Tally:
    """Answers of one kind."""

    right: int = 0
    asked: int = 0

    @property
    def share(self) -> float:
        """Of right answers."""
        return self.right / self.asked

    def __str__(self) -> str:
        return f"{self.share:.0%}" if self.asked else "-"


class Scores:
    """The answers by task, length, depth and control.

    Args:
        rows: of NeedleRecord.
        lengths, depths, tasks: of the grid, ascending where they are numbers.
        control: whether there are blanked needles.
    """

    def __init__(
        self, rows: Iterable[Mapping[str, Any]], *, lengths: Sequence[int], depths: Sequence[float], tasks: Sequence[str], control: bool
    ) -> None:
        self.rows = list(rows)
        self.lengths, self.depths, self.tasks, self.control = sorted(lengths), sorted(depths), list(tasks), control

    def tally(self, **wanted: Any) -> Tally:
        """Of the rows that have these values, such as task="colour", length=64, blank=False."""
        hits = [bool(row["right"]) for row in self.rows if all(row[name] == value for name, value in wanted.items())]
        return Tally(sum(hits), len(hits))

    def table(self) -> str:
        """For each task a line for each length: all depths, each depth, and the control."""
        names = [f"depth {depth:g}" for depth in self.depths]
        lines = []
        for task in self.tasks:
            head = ["frames", "tokens", "all", *names, *(["blanked"] if self.control else [])]
            body = [self._line(task, length) for length in self.lengths]
            lines.append(f"{task} (chance {TASKS[task].chance:.1%})")
            lines += aligned([head, *body])
        return "\n".join(lines)

    def _line(self, task: str, length: int) -> list[str]:
        here = {"task": task, "length": length}
        tokens = max((row["prompt_tokens"] for row in self.rows if row["task"] == task and row["length"] == length), default=0)
        cells = [str(self.tally(**here, blank=False, depth=depth)) for depth in self.depths]
        control = [str(self.tally(**here, blank=True))] if self.control else []
        return [f"{length:,}", f"{tokens:,}", str(self.tally(**here, blank=False)), *cells, *control]

    def cells(self) -> list[dict[str, Any]]:
        """The grid as JSON holds it."""
        found = []
        for task in self.tasks:
            for length in self.lengths:
                for depth in self.depths:
                    for blank in (False, True) if self.control else (False,):
                        cell = {"task": task, "length": length, "depth": depth, "blank": blank}
                        tally = self.tally(**cell)
                        found.append({**cell, "right": tally.right, "asked": tally.asked})
        return found

    def shortfalls(self, least: float, up_to: int) -> list[str]:
        """What keeps the test from passing, a sentence each.

        Each task must reach `least` at each length up to `up_to`, over all depths. A control must not be better than guessing.
        """
        found = []
        for task in self.tasks:
            for length in (length for length in self.lengths if length <= up_to):
                tally = self.tally(task=task, length=length, blank=False)
                if tally.share < least:
                    found.append(f"{task} at {length:,} frames: {tally.right} of {tally.asked} right, expected {least:.0%}")
        return found + self.leaks()

    def lowest(self, up_to: int) -> float:
        """The lowest share of right answers of a task at a length up to `up_to`, over all depths, without the control."""
        lengths = [length for length in self.lengths if length <= up_to]
        return min(self.tally(task=task, length=length, blank=False).share for task in self.tasks for length in lengths)

    def leaks(self) -> list[str]:
        """The tasks whose control is better than guessing, a sentence each."""
        return [leak for leak in map(self._leak, self.tasks) if leak]

    def _leak(self, task: str) -> str:
        """What is wrong with a control that is answered; empty: nothing.

        Answers about one haystack and one depth at several lengths have one right answer, so they count as one guess.
        """
        blanked = self.tally(task=task, blank=True)
        if not blanked.asked:
            return ""
        guesses = len({(row["haystack"], row["depth"]) for row in self.rows if row["task"] == task and row["blank"]})
        chance = TASKS[task].chance
        if by_chance(math.floor(blanked.share * guesses), guesses, chance) >= _LEAK:
            return ""
        return f"{task} with blanked needles: {blanked.right} of {blanked.asked} right, chance is {chance:.1%}; the answers leak"


def by_chance(right: int, asked: int, chance: float) -> float:
    """How likely so many right answers, or more, are by guessing: the tail of the binomial distribution."""

    def log_of(hits: int) -> float:
        ways = math.lgamma(asked + 1) - math.lgamma(hits + 1) - math.lgamma(asked - hits + 1)
        return ways + hits * math.log(chance) + (asked - hits) * math.log1p(-chance)

    return min(1.0, sum(math.exp(log_of(hits)) for hits in range(right, asked + 1)))
