"""Chat templates by name. A new one is a file with a class and a line in the table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from mindspeed_vita.data.sample import Message
from mindspeed_vita.data.templates.qwen2 import Qwen2Template


class ChatTemplate(Protocol):
    """Turns messages into tokens; tags of pictures and videos stay single tokens.

    A conversation cut after some turn gives the tokens of the turns kept, unchanged.
    """

    name: str

    def encode_turns(self, messages: Sequence[Message], tokenizer: Any) -> list[tuple[list[int], list[bool]]]:
        """For each message (token ids, whether each one is supervised), unshifted."""
        ...

    def encode(self, messages: Sequence[Message], tokenizer: Any) -> tuple[list[int], list[bool]]:
        """All turns one after the other."""
        ...


_TEMPLATES: dict[str, type[ChatTemplate]] = {"qwen2": Qwen2Template}


def template_names() -> tuple[str, ...]:
    """Names that get_template knows."""
    return tuple(sorted(_TEMPLATES))


def get_template(name: str) -> ChatTemplate:
    """The template of that name.

    Raises:
        ValueError: no such template.
    """
    if name not in _TEMPLATES:
        raise ValueError(f"data.template={name!r} is unknown; expected one of {', '.join(template_names())}")
    return _TEMPLATES[name]()
