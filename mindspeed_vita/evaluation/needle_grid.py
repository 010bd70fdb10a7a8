"""The grid of a needle test: lengths by depths, haystacks and tasks. Requests are ordered so that the prefix cache holds most of each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from mindspeed_vita.evaluation.needle_cases import TASKS, Case, Haystack
from mindspeed_vita.evaluation.needle_frames import WALLS

MEDIA = ("video", "pictures")
"""Frames of one video, or pictures."""
LONGEST = 16384
"""Most frames of a haystack; also the most media that a sample may have."""


@dataclass(frozen=True, kw_only=True)
class Grid:
    """What is asked.

    Raises:
        ValueError: a value that makes no test.
    """

    lengths: tuple[int, ...]
    """Frames of a haystack."""
    depths: tuple[float, ...]
    """Where the first needle stands, 0 to 1."""
    tasks: tuple[str, ...] = ("colour", "shape")
    """Of TASKS."""
    samples: int = 5
    """Haystacks, so questions of each task in a cell of the grid."""
    media: str = "video"
    """One of MEDIA."""
    distractor_every: int = 8
    """See Haystack."""
    wall: str = ""
    """The wall of the needles, see Haystack.asked_wall."""
    control: bool = False
    """Ask all of it again with blanked needles."""
    seed: int = 0
    """Other seeds make other haystacks."""

    def __post_init__(self) -> None:
        for name in ("lengths", "depths", "tasks"):
            values = getattr(self, name)
            if not values or len(set(values)) < len(values):
                raise ValueError(f"{name} {_listed(values)}: expected one or more values, each once")
        unknown = [task for task in self.tasks if task not in TASKS]
        if unknown:
            raise ValueError(f"task {unknown[0]!r} is unknown; expected some of {', '.join(TASKS)}")
        if self.media not in MEDIA:
            raise ValueError(f"media {self.media!r} is unknown; expected one of {', '.join(MEDIA)}")
        if self.wall and self.wall not in WALLS:
            raise ValueError(f"wall {self.wall!r} is unknown; expected one of {', '.join(WALLS)}, or none for either")
        outside = [depth for depth in self.depths if not 0 <= depth <= 1]
        if outside:
            raise ValueError(f"depth {outside[0]:g} lies outside 0 to 1; 0 is the first frame of a haystack, 1 the last")
        shortest = max(TASKS[task].num_needles for task in self.tasks)
        wrong = [length for length in self.lengths if not shortest <= length <= LONGEST]
        if wrong:
            raise ValueError(f"a haystack of {wrong[0]} frames; expected {shortest} (the needles of a task) to {LONGEST:,} frames")
        if self.samples < 1 or self.distractor_every < 0 or self.distractor_every == 1:
            raise ValueError(
                f"samples={self.samples}, distractor_every={self.distractor_every}; expected at least 1 sample, and a distractor every 2 "
                "frames or more, or 0 for none"
            )

    def settings(self) -> dict[str, Any]:
        """As JSON holds it."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}

    def haystack(self, sample: int) -> Haystack:
        """One of the haystacks. Its frames are the same at every length."""
        return Haystack(seed=f"test {self.seed} haystack {sample}", distractor_every=self.distractor_every, asked_wall=self.wall)

    def cases(self) -> list[Case]:
        """All requests in the order in which they are asked.

        Two requests share what stands before the first needle of either. So each haystack is asked from its end: the needle farthest
        behind comes first, and what stands before it serves all others. Questions about the same frames follow each other.
        """
        cases = [
            (sample, Case(haystack=self.haystack(sample), task=task, length=length, depth=depth, blank=blank))
            for sample in range(self.samples)
            for task in self.tasks
            for length in self.lengths
            for depth in self.depths
            for blank in ((False, True) if self.control else (False,))
        ]

        def order(item: tuple[int, Case]) -> tuple[Any, ...]:
            sample, case = item
            return sample, -case.places[0], TASKS[case.task].num_needles, case.blank, -case.length, case.depth

        return [case for _, case in sorted(cases, key=order)]


def evenly(count: int) -> tuple[float, ...]:
    """So many depths from 0 to 1.

    Raises:
        ValueError: fewer than two.
    """
    if count < 2:
        raise ValueError(f"{count} depths; expected at least 2, from 0 to 1, or the depths themselves")
    return tuple(round(place / (count - 1), 4) for place in range(count))


def _listed(values: Sequence[Any]) -> str:
    return ", ".join(map(str, values)) or "(none)"
