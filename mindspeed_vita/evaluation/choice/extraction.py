"""What a generated text answers: the letter of an option, or whether an open answer is right. Rules only; no other model judges.

docs/guides/evaluation_choice.md lists the rules. A text that they find no answer in counts as wrong; nothing is guessed.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Optional

RULES = 1
"""Counted up whenever a rule changes: records of other rules are refused, since their scores are not comparable."""

_LEADS = re.compile(r"(?i:\b(?:answer|option|choice)\s*(?:is|:)?)\s*:?\s*\(?([A-Z])\b(?!')")
_ARTICLE = re.compile(r"\W*[AI]\s+[a-z]")
"""A text that begins with a word of one letter: "A cat", "I think"."""
_WORDS = re.compile(r"[^\w.%/-]+")
_NUMBER = re.compile(r"-?\d+(?:\.\d+)?(?:e[+-]?\d+)?")
_ARTICLES = {"a", "an", "the"}


def letter_of(text: str, options: Sequence[str], letters: str) -> Optional[str]:
    """The letter of the option that a text chooses; None where the rules find none, or more than one.

    Args:
        text: what the model said.
        options: the options' texts.
        letters: their letters.
    """
    said = text.strip()
    first = re.match(rf"\W*([{letters}])(?:[\s.,:;)\]]|$)", said)
    if first is not None and not _ARTICLE.match(said):
        return first.group(1)
    named = set(_LEADS.findall(said)) & set(letters)
    if len(named) == 1:
        return named.pop()
    marked = set(re.findall(rf"\(([{letters}])\)|\b([{letters}])[.)](?:\s|$)", said))
    alone = {found for pair in marked for found in pair if found}
    if len(alone) == 1:
        return alone.pop()
    return _by_text(said, options, letters)


def _by_text(said: str, options: Sequence[str], letters: str) -> Optional[str]:
    """The one option whose text is said, whole or as the longest of those that are said."""
    plain = _plain(said)
    whole = [letter for letter, option in zip(letters, options) if _plain(option) == plain]
    if len(whole) == 1:
        return whole[0]
    found = {letter: _plain(option) for letter, option in zip(letters, options) if _plain(option) and _holds(plain, _plain(option))}
    longest = [letter for letter, option in found.items() if all(other in option for other in found.values())]
    return longest[0] if len(longest) == 1 else None


def is_right(text: str, answers: Sequence[str]) -> bool:
    """Whether an open answer is right: equal to one of the answers but for case, punctuation and articles, an equal number, or a text
    that holds the answer as whole words.
    """
    plain = _plain(text)
    for answer in answers:
        wanted = _plain(answer)
        if not wanted:
            continue
        if _NUMBER.fullmatch(wanted.replace(",", "")):
            numbers = _NUMBER.findall(plain.replace(",", ""))
            # the last number counts, as a derivation ends with its result; rounded to two places, as MMMU's own rules do it
            if numbers and round(float(numbers[-1]), 2) == round(float(wanted.replace(",", "")), 2):
                return True
        elif plain == wanted or _holds(plain, wanted):
            return True
    return False


def _plain(text: str) -> str:
    words = [word.strip(".") for word in _WORDS.split(re.sub(r"(?<=\d),(?=\d)", "", text.lower()))]
    return " ".join(word for word in words if word and word not in _ARTICLES)


def _holds(text: str, words: str) -> bool:
    return f" {words} " in f" {text} "
