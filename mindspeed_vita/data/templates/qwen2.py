"""Qwen2's chat format (ChatML) as Long-VITA was trained on it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mindspeed_vita.data.sample import Message


class Qwen2Template:
    """<|im_start|>role, line feed, content, <|im_end|>, line feed; no system prompt unless the sample has one.

    The content is tokenised apart from the header, so content that starts with a line feed gives two line feeds, never the
    merged token. Supervised: the content of assistant turns, their <|im_end|> and the line feed after it.
    """

    name = "qwen2"

    def encode_turns(self, messages: Sequence[Message], tokenizer: Any) -> list[tuple[list[int], list[bool]]]:
        """For each message (token ids, whether each one is supervised), unshifted; tags of media stay single tokens."""
        start, end = (tokenizer.convert_tokens_to_ids(token) for token in ("<|im_start|>", "<|im_end|>"))
        line_feed = _encode(tokenizer, "\n")
        turns = []
        for message in messages:
            header = [start, *_encode(tokenizer, message.role), *line_feed]
            body = [*_encode(tokenizer, message.content), end, *line_feed]
            turns.append((header + body, [False] * len(header) + [message.role == "assistant"] * len(body)))
        return turns

    def encode(self, messages: Sequence[Message], tokenizer: Any) -> tuple[list[int], list[bool]]:
        """All turns one after the other."""
        turns = self.encode_turns(messages, tokenizer)
        return [token for ids, _ in turns for token in ids], [flag for _, flags in turns for flag in flags]


def _encode(tokenizer: Any, text: str) -> list[int]:
    # The Rust tokenizer itself: transformers' wrapper costs several times more than tokenising a turn does.
    return tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids
