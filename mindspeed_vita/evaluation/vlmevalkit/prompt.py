"""What VLMEvalKit hands over, as a request: its message, where the last line asks for a short answer in the words of our own prompts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Optional

from mindspeed_vita.evaluation.choice.prompt import CHOICE_INSTRUCTION
from mindspeed_vita.evaluation.parts import request_of_parts
from mindspeed_vita.inference.request import Request

_CHOOSE = "Please select the correct answer from the options above."
"""VLMEvalKit's last line of a multiple-choice question; without another word a model may answer it at length."""
_PARTLY = "Answer: "
"""VLMEvalKit begins the answer of some video benchmarks. Here the chat template begins it."""


def request_of_message(message: Sequence[dict[str, str]], dataset: Optional[str]) -> Request:
    """A message of VLMEvalKit: parts with `type` (text, image or video) and `value`.

    Raises:
        ValueError: a part of another kind, or a text that holds a tag of a medium.
    """
    parts = [(part["type"], _text(part["value"]) if part["type"] == "text" else part["value"]) for part in message]
    try:
        return request_of_parts([("user", [part for part in parts if part != ("text", "")])])
    except ValueError as error:
        raise ValueError(f"a row of {dataset}: {error}") from error


def _text(text: str) -> str:
    text = text.replace(_CHOOSE, CHOICE_INSTRUCTION)
    return text.removesuffix(_PARTLY).rstrip() + "\n" + CHOICE_INSTRUCTION if text.endswith(f"\n{_PARTLY}") else text
