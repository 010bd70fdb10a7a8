"""The tokens of a given answer, as training encodes it after a prompt; for scoring answers that the model did not choose itself."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from mindspeed_vita.data.sample import Message
from mindspeed_vita.data.templates import ChatTemplate


def answer_tokens(template: ChatTemplate, tokenizer: Any, text: str) -> tuple[int, ...]:
    """Token ids of an answer, without those that end it.

    Args:
        template: how turns become tokens.
        tokenizer: with the template's tokens.
        text: what the assistant says.
    """

    def supervised(answer: str) -> list[int]:
        tokens, chosen = template.encode((Message("user", ""), Message("assistant", answer)), tokenizer)
        return [int(token) for token, is_chosen in zip(tokens, chosen) if is_chosen]

    whole, end = supervised(text), supervised("")
    return tuple(whole[: len(whole) - len(end)])


def letter_tokens(template: ChatTemplate, tokenizer: Any, letters: Iterable[str]) -> dict[str, int]:
    """The token that an answer of one letter begins with, by letter.

    Raises:
        ValueError: a letter has no token of its own, so its likelihood would not be comparable.
    """
    found = {letter: answer_tokens(template, tokenizer, letter) for letter in letters}
    for letter, tokens in found.items():
        if len(tokens) != 1:
            raise ValueError(f"the tokenizer has no token for an answer {letter!r} (it takes {len(tokens)}), so letters have no likelihood")
    return {letter: tokens[0] for letter, tokens in found.items()}
