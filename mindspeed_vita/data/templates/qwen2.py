"""Qwen2's chat format (ChatML) as Long-VITA was trained on it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from mindspeed_vita.data.sample import Message
from mindspeed_vita.data.templates.template import ChatTemplate, EncodedTurn, RenderedTurn


class Qwen2Template(ChatTemplate):
    """<|im_start|>role, line feed, content, <|im_end|>, line feed; no system prompt unless the sample has one.

    The content is tokenised apart from the header, so content that starts with a line feed gives two line feeds, never the
    merged token. Supervised: the content of assistant turns, their <|im_end|> and the line feed after it.
    """

    name = "qwen2"
    special_tokens = ("<|im_start|>", "<|im_end|>")
    stop_token = "<|im_end|>"
    pad_token = "<|endoftext|>"

    def render(self, messages: Sequence[Message]) -> list[RenderedTurn]:
        """See ChatTemplate."""
        turns = []
        for message in messages:
            header = f"<|im_start|>{message.role}\n"
            text = f"{header}{message.content}<|im_end|>\n"
            turns.append(RenderedTurn(text, len(header) if message.role == "assistant" else len(text)))
        return turns

    def encode_chat(self, messages: Sequence[Message], tokenizer: Any) -> list[EncodedTurn]:
        """As ChatTemplate, but header and content are tokenised apart."""
        start, end = (tokenizer.convert_tokens_to_ids(token) for token in self.special_tokens)
        line_feed = _fixed(tokenizer.backend_tokenizer, "\n")
        turns = []
        for message in messages:
            header = [start, *_fixed(tokenizer.backend_tokenizer, message.role), *line_feed]
            body = [*_encode(tokenizer, message.content), end, *line_feed]
            turns.append((header + body, [False] * len(header) + [message.role == "assistant"] * len(body)))
        return turns


def _encode(tokenizer: Any, text: str) -> list[int]:
    return tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids


@lru_cache(maxsize=64)
def _fixed(backend: Any, text: str) -> list[int]:
    """Tokens of a role or line feed, which every turn has."""
    return backend.encode(text, add_special_tokens=False).ids
