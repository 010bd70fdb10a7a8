"""What a needle test asks: a haystack of frames, needles at a depth of it, a question that only the needles answer, and what is right.

All of it follows from a seed. Two cases with one haystack have the same frames up to the first needle, whatever their length and depth.
"""

from __future__ import annotations

import hashlib
import math
import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Optional

from mindspeed_vita.evaluation.needle_frames import COLOURS, SHAPES, WALLS, Card, Frame, Hay

NUM_NEEDLES = 3
"""Needles of the tasks that have several."""
ORDINALS = ("first", "second", "third")


@dataclass(frozen=True, kw_only=True)
class Task:
    """A kind of question."""

    num_needles: int
    question: Callable[[str, int], str]
    """From the wall of the needles, and the place of the one that is asked about among them."""
    answer: Callable[[Sequence[Card], int], list[str]]
    """The words that the answer must name, in order."""
    words: tuple[str, ...]
    """All words that may be such an answer; others do not count."""
    written: Callable[[list[str]], str]
    """The words as training writes them."""
    chance: float
    """Share of right answers without a look at the needles."""


def _sentence(words: list[str]) -> str:
    return f"{', '.join(words).capitalize()}."


TASKS = {
    "colour": Task(
        num_needles=1,
        question=lambda wall, place: f"What colour is the shape in front of the {wall} wall?",
        answer=lambda needles, place: [needles[place].colour],
        words=tuple(COLOURS),
        written=_sentence,
        chance=1 / len(COLOURS),
    ),
    "shape": Task(
        num_needles=1,
        question=lambda wall, place: f"Which shape is in front of the {wall} wall: {', '.join(SHAPES)}?",
        answer=lambda needles, place: [needles[place].shape],
        words=tuple(SHAPES),
        written=_sentence,
        chance=1 / len(SHAPES),
    ),
    "nth": Task(
        num_needles=NUM_NEEDLES,
        question=lambda wall, place: f"What colour is the {ORDINALS[place]} shape in front of a {wall} wall?",
        answer=lambda needles, place: [needles[place].colour],
        words=tuple(COLOURS),
        written=_sentence,
        chance=1 / len(COLOURS),
    ),
    "order": Task(
        num_needles=NUM_NEEDLES,
        question=lambda wall, place: f"Name the colours of the {NUM_NEEDLES} shapes in front of a {wall} wall, in order.",
        answer=lambda needles, place: [needle.colour for needle in needles],
        words=tuple(COLOURS),
        written=_sentence,
        chance=1 / math.perm(len(COLOURS), NUM_NEEDLES),
    ),
}
"""The kinds of questions: one needle's colour or shape; of several needles the colour of one by its place, or all colours in order."""


@dataclass(frozen=True, kw_only=True)
class Haystack:
    """Frames without end, some of them distractors: cards like the needles, with a wall that no question asks about."""

    seed: str
    distractor_every: int = 8
    """One distractor in each stretch of so many frames; 0: none."""
    asked_wall: str = ""
    """The wall of the needles; empty: drawn from WALLS, so that only the question says which cards are needles."""
    pool: Optional[int] = None
    """How many different frames of each kind there are; None: no limit."""

    @property
    def wall(self) -> str:
        """The wall of the needles."""
        return self.asked_wall or self._draw("wall").choice(tuple(WALLS))

    def frame(self, place: int) -> Frame:
        """The frame at a place."""
        if self.distractor_every:
            draw = self._draw(f"stretch {place // self.distractor_every}")
            if draw.randrange(self.distractor_every) == place % self.distractor_every:
                walls = [wall for wall in WALLS if wall != self.wall]
                return self._card(draw, draw.choice(walls), draw.choice(tuple(COLOURS)))
        return Hay(self._number(self._draw(f"hay {place}")))

    def needles(self, count: int, depth: float) -> tuple[Card, ...]:
        """The needles for a depth, all of different colours. Other depths have others, so that their answers are drawn independently."""
        draw = self._draw(f"{count} needles at {depth!r}")
        return tuple(self._card(draw, self.wall, colour) for colour in draw.sample(tuple(COLOURS), count))

    def asked(self, depth: float) -> int:
        """Which of several needles is asked about."""
        return self._draw(f"asked at {depth!r}").randrange(NUM_NEEDLES)

    def _card(self, draw: random.Random, wall: str, colour: str) -> Card:
        return Card(wall, draw.choice(tuple(SHAPES)), colour, self._number(draw))

    def _number(self, draw: random.Random) -> int:
        return draw.randrange(1 << 40 if self.pool is None else self.pool)

    def _draw(self, what: str) -> random.Random:
        return random.Random(f"{self.seed} {what}")


@dataclass(frozen=True, kw_only=True)
class Case:
    """One request: a question about a haystack with needles in it."""

    haystack: Haystack
    task: str
    """One of TASKS."""
    length: int
    """Frames."""
    depth: float
    """Where the first needle stands: 0 first, 1 as late as there is room for all."""
    blank: bool = False
    """The control: the needles' walls without their shapes. What is right is then drawn by nothing that the model sees."""

    @property
    def places(self) -> tuple[int, ...]:
        """The frames that are needles: the first one at the depth, the others evenly behind it."""
        count = TASKS[self.task].num_needles
        first = round(self.depth * (self.length - count))
        return tuple(first + number * (self.length - first) // count for number in range(count))

    @property
    def needles(self) -> tuple[Card, ...]:
        """The needles as they are without a control."""
        return self.haystack.needles(TASKS[self.task].num_needles, self.depth)

    def frames(self) -> list[Frame]:
        """The frames, length of them."""
        frames = [self.haystack.frame(place) for place in range(self.length)]
        for place, needle in zip(self.places, self.needles):
            frames[place] = Card(needle.wall, "", "", needle.number) if self.blank else needle
        return frames

    @property
    def question(self) -> str:
        """What is asked."""
        return TASKS[self.task].question(self.haystack.wall, self._place)

    @property
    def expected(self) -> list[str]:
        """The words that the answer must name, in order."""
        return TASKS[self.task].answer(self.needles, self._place)

    @property
    def _place(self) -> int:
        return self.haystack.asked(self.depth) if TASKS[self.task].num_needles > 1 else 0

    def is_right(self, answer: str) -> bool:
        """Whether an answer names exactly the expected words. Other words do not count, nor does a word that is said again at once."""
        named = [word for word in re.findall(r"[a-z]+", answer.lower()) if word in TASKS[self.task].words]
        return [word for word, before in zip(named, [None, *named]) if word != before] == self.expected

    @property
    def key(self) -> str:
        """A name that no other case of a test has."""
        text = f"{self.haystack.seed} {self.task} {self.length} {self.depth!r} {'blank' if self.blank else 'needle'}"
        return hashlib.sha256(text.encode()).hexdigest()[:16]
