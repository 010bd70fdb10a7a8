"""A turn made of parts (texts, pictures, videos), as the field's evaluators and OpenAI's API write it."""

from __future__ import annotations

from collections.abc import Iterable

from mindspeed_vita.data.sample import Message
from mindspeed_vita.inference.request import Request


def request_of_parts(turns: Iterable[tuple[str, Iterable[tuple[str, str]]]]) -> Request:
    """Turns as a request. A medium stands where its part does, with a line feed after it, as the server writes it.

    Args:
        turns: role and parts; a part is ("text", TEXT), ("image", PATH) or ("video", PATH).

    Raises:
        ValueError: a part of another kind, or a text that holds a tag of a medium.
    """
    messages: list[Message] = []
    media: dict[str, list[str]] = {"image": [], "video": []}
    for role, parts in turns:
        text = ""
        for kind, value in parts:
            if kind == "text":
                tag = next((tag for tag in ("<image>", "<video>") if tag in value), None)
                if tag is not None:
                    raise ValueError(f"a text holds the tag {tag}, which would stand for a medium: {value[:80]!r}")
                text += value
            elif kind in media:
                media[kind].append(value)
                text += f"<{kind}>\n"
            else:
                raise ValueError(f"a part of kind {kind!r}; expected text, image or video")
        messages.append(Message(role, text))
    return Request(messages=tuple(messages), images=tuple(media["image"]), videos=tuple(media["video"]))
