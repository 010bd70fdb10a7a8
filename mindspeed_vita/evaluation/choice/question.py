"""A question of a benchmark, whatever file it came from."""

from __future__ import annotations

import string
from collections.abc import Mapping
from dataclasses import dataclass, field

LETTERS = string.ascii_uppercase


@dataclass(frozen=True, kw_only=True)
class Question:
    """What is asked, and what is right."""

    id: str
    """The benchmark's own name of the question."""
    text: str
    """The question; <image> and <video> say where media stand. Media without a tag go before the text."""
    options: tuple[str, ...] = ()
    """Texts of the options A, B, C and so on, without their letters; none for an open question."""
    answer: tuple[str, ...] = ()
    """The right letter, or for an open question all texts that count as right; none where the file does not say it."""
    hint: str = ""
    """A text before the question."""
    images: tuple[str, ...] = ()
    """Paths of pictures."""
    videos: tuple[str, ...] = ()
    """Paths of videos, see clips.py."""
    subtitles: str = ""
    """Path of a file of subtitles; empty: none."""
    subtitles_start: float = 0.0
    """Where the video begins, in seconds of the subtitles' clock."""
    groups: Mapping[str, str] = field(default_factory=dict)
    """What accuracies are listed by: {"duration": "short", "task": "Counting Problem"}."""
    circle: str = ""
    """Rows that ask the same question with turned options have the same circle. Such a question counts once, if all its rows are right."""

    @property
    def letters(self) -> str:
        """The letters of the options."""
        return LETTERS[: len(self.options)]
