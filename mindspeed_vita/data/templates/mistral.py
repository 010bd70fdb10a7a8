"""Mistral's chat format, version 7 (Tekken): instructions, answers and system prompts between tokens of their own, without spaces."""

from __future__ import annotations

from collections.abc import Sequence

from mindspeed_vita.data.sample import Message
from mindspeed_vita.data.templates.template import ChatTemplate, RenderedTurn

_AROUND = {"system": ("[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]"), "user": ("[INST]", "[/INST]"), "assistant": ("", "</s>")}


class MistralTemplate(ChatTemplate):
    """Supervised: the content of answers and the </s> after it."""

    name = "mistral"
    special_tokens = ("<s>", "</s>", "[INST]", "[/INST]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]")
    stop_token = "</s>"
    pad_token = "</s>"
    begin_token = "<s>"

    def render(self, messages: Sequence[Message]) -> list[RenderedTurn]:
        """See ChatTemplate."""
        turns = []
        for place, message in enumerate(messages):
            begin = "" if place else self.begin_token
            before, after = _AROUND[message.role]
            text = f"{begin}{before}{message.content}{after}"
            turns.append(RenderedTurn(text, len(begin) if message.role == "assistant" else len(text)))
        return turns
