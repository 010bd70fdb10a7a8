"""Llama 3's chat format."""

from __future__ import annotations

from collections.abc import Sequence

from mindspeed_vita.data.sample import Message
from mindspeed_vita.data.templates.template import ChatTemplate, RenderedTurn


class Llama3Template(ChatTemplate):
    """A role between header tokens, two line feeds, the trimmed content, <|eot_id|>. Supervised: answers and their <|eot_id|>."""

    name = "llama3"
    special_tokens = ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
    stop_token = "<|eot_id|>"
    pad_token = "<|end_of_text|>"
    begin_token = "<|begin_of_text|>"

    def render(self, messages: Sequence[Message]) -> list[RenderedTurn]:
        """See ChatTemplate."""
        turns = []
        for place, message in enumerate(messages):
            begin = "" if place else self.begin_token
            header = f"{begin}<|start_header_id|>{message.role}<|end_header_id|>\n\n"
            text = f"{header}{message.content.strip()}<|eot_id|>"
            turns.append(RenderedTurn(text, len(header) if message.role == "assistant" else len(text)))
        return turns
