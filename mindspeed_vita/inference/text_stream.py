"""Tokens to text as they come: no half characters, no part of a stop string, and in the end exactly the decoded whole."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Optional

_UNFINISHED = "\N{REPLACEMENT CHARACTER}"
_BYTE_TOKEN = re.compile(r"<0x[0-9A-F]{2}>")


class Detokenizer:
    """Decodes token by token; the pieces together are the decoded whole.

    A token may hold part of a character. Its text is held back until the character is whole, as long as decoding ends with the replacement
    character. Vocabularies of sentencepiece have tokens for single bytes; a run of them is decoded as a whole, so it is held back until
    another token follows.

    Args:
        tokenizer: a transformers tokenizer.
        skip_special_tokens: leave special tokens out of the text.
    """

    def __init__(self, tokenizer: Any, *, skip_special_tokens: bool = True) -> None:
        self._tokenizer, self._skip = tokenizer, skip_special_tokens
        # Decoding begins at a token before the new ones, because some tokenizers treat the beginning of a text in another way. The tokens
        # from there on, how many of them gave their text already, and that text:
        self._window: list[int] = []
        self._num_told, self._told = 0, ""
        self._whole, self._in_bytes = "", False

    def push(self, token: int) -> str:
        """The text that is certain after one more token; often empty."""
        self._window.append(token)
        before, self._whole = self._whole, self._decode(self._window)
        if self._whole != before:  # a token without text, a special one, does not end a run of bytes
            self._in_bytes = bool(_BYTE_TOKEN.fullmatch(self._tokenizer.convert_ids_to_tokens(token) or ""))
        return "" if self._in_bytes or self._whole.endswith(_UNFINISHED) else self._tell()

    def finish(self) -> str:
        """The text still held back. A character that stays incomplete becomes what decoding the whole makes of it."""
        return self._tell()

    def _tell(self) -> str:
        piece = self._whole[len(self._told) :]
        fresh = self._window[self._num_told :]
        alone = self._decode(fresh)
        if alone:  # enough to begin at next time
            self._window, self._whole = fresh, alone
        self._num_told, self._told = len(self._window), self._whole
        return piece

    def _decode(self, tokens: Sequence[int]) -> str:
        return self._tokenizer.decode(tokens, skip_special_tokens=self._skip, clean_up_tokenization_spaces=False)


class StopStrings:
    """Finds the first stop string in a text that comes in pieces, and holds back what may be the beginning of one.

    The first one is the one that is complete first; of two that are complete at the same place, the longer one. So the result does not
    depend on how the text is cut into pieces.

    Args:
        stops: texts, none empty.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""
        self.met: Optional[str] = None
        """The stop string that was found. After that, no text comes any more."""

    def push(self, text: str, *, look: bool = True) -> str:
        """The text that can be shown after one more piece.

        Args:
            text: the piece.
            look: False shows it all, and no stop string can begin in it.
        """
        if self.met is not None:
            return ""
        text, self._held = self._held + text, ""
        if not look:
            return text
        ends = [(place + len(stop), -len(stop), stop) for stop in self._stops if (place := text.find(stop)) >= 0]
        if ends:
            end, _, self.met = min(ends)
            return text[: end - len(self.met)]
        shown = len(text) - self._beginning(text)
        self._held = text[shown:]
        return text[:shown]

    def finish(self) -> str:
        """The text still held back."""
        held, self._held = self._held, ""
        return held

    def _beginning(self, text: str) -> int:
        """Characters at the end of a text that may be the beginning of a stop string."""
        most = min(max((len(stop) for stop in self._stops), default=0) - 1, len(text))
        return next((size for size in range(most, 0, -1) if any(stop.startswith(text[-size:]) for stop in self._stops)), 0)


class TextStream:
    """The text of one answer, as it may be shown.

    Args:
        tokenizer: a transformers tokenizer.
        stop: stop strings.
        min_tokens: stop strings are looked for only in the text of later tokens.
        skip_special_tokens: leave special tokens out of the text.
    """

    def __init__(self, tokenizer: Any, stop: Sequence[str] = (), *, min_tokens: int = 0, skip_special_tokens: bool = True) -> None:
        self._tokens, self._stops = Detokenizer(tokenizer, skip_special_tokens=skip_special_tokens), StopStrings(stop)
        self._min_tokens, self._num_tokens = min_tokens, 0
        self._pieces: list[str] = []

    @property
    def text(self) -> str:
        """All that was shown."""
        return "".join(self._pieces)

    @property
    def stopped_by(self) -> Optional[str]:
        """The stop string that ended the answer, or None."""
        return self._stops.met

    def push(self, token: int) -> str:
        """The piece of text that can be shown after one more token; often empty."""
        self._num_tokens += 1
        return self._show(self._stops.push(self._tokens.push(token), look=self._num_tokens > self._min_tokens))

    def finish(self) -> str:
        """What was held back, once no token comes any more. It may be found to complete a stop string: see stopped_by."""
        rest = self._stops.push(self._tokens.finish(), look=self._num_tokens > self._min_tokens)
        return self._show(rest + self._stops.finish())

    def _show(self, piece: str) -> str:
        self._pieces.append(piece)
        return piece
