"""Vicuna's chat format (FastChat's v1.1, which LLaVA uses): plain words for the roles."""

from __future__ import annotations

from collections.abc import Sequence

from mindspeed_vita.data.sample import Message
from mindspeed_vita.data.templates.template import ChatTemplate, RenderedTurn
from mindspeed_vita.hf.chat_template import VICUNA_SYSTEM


class VicunaTemplate(ChatTemplate):
    """System text, then USER: ... ASSISTANT: ...</s>; a conversation without a system turn gets Vicuna's own. Contents are trimmed.

    Supervised: the answer with the space before it, and the </s> after it.
    """

    name = "vicuna"
    special_tokens = ("<s>", "</s>")
    stop_token = "</s>"
    pad_token = "</s>"
    begin_token = "<s>"

    def render(self, messages: Sequence[Message]) -> list[RenderedTurn]:
        """See ChatTemplate."""
        turns = []
        for place, message in enumerate(messages):
            begin, content = "" if place else self.begin_token, message.content.strip()
            if not place and message.role != "system":
                begin += VICUNA_SYSTEM + " "
            text = begin + {"system": f"{content} ", "user": f"USER: {content} ASSISTANT:", "assistant": f" {content}</s>"}[message.role]
            turns.append(RenderedTurn(text, len(begin) if message.role == "assistant" else len(text)))
        return turns
