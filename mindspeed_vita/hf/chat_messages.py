"""Chat messages for the processor: content brought to one form, the media in it, and where the answers are in the rendered text.

This file travels with exported checkpoints. A message is {"role": ..., "content": text, a list of parts, or None}.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

_MEDIA_KEYS = {"image": ("image", "url", "path", "base64"), "video": ("video", "url", "path")}


def with_parts(conversation: Any) -> Any:
    """Every message's content as a list of text, image and video parts; None and no content become an empty list.

    OpenAI's image_url and video_url parts become image and video parts. A conversation is a list of messages; a batch is a list of these.

    Raises:
        ValueError: no messages, or a message or part of another kind.
    """
    if isinstance(conversation, dict):
        return _message(conversation)
    if not isinstance(conversation, (list, tuple)):
        raise ValueError(f"found a {type(conversation).__name__} as conversation; expected a list of messages, or a list of such lists")
    if not conversation:
        raise ValueError("found a conversation without messages; expected at least one {'role': ..., 'content': ...}")
    return [with_parts(item) for item in conversation]


def _message(message: dict[str, Any]) -> dict[str, Any]:
    if "role" not in message:
        raise ValueError(f"found a message with the keys {', '.join(map(repr, message)) or 'none'}; expected 'role' and 'content'")
    content = message.get("content")
    if content is None:
        return {**message, "content": []}
    if isinstance(content, str):
        return {**message, "content": [{"type": "text", "text": content}]}
    if not isinstance(content, (list, tuple)):
        raise ValueError(f"a message's content is a {type(content).__name__}; expected text, a list of parts, or None")
    return {**message, "content": [_part(part) for part in content]}


def _part(part: Any) -> dict[str, Any]:
    if isinstance(part, str):
        return {"type": "text", "text": part}
    kind = part.get("type") if isinstance(part, dict) else type(part).__name__
    if kind in ("image_url", "video_url"):
        source = part.get(kind)
        source = source.get("url") if isinstance(source, dict) else source
        if source is None:
            raise ValueError(f"found a part of type '{kind}' without an address; expected {{'type': '{kind}', '{kind}': {{'url': ...}}}}")
        name = kind.removesuffix("_url")
        return {"type": name, name: source}
    if kind == "text" and not isinstance(part.get("text"), str):
        raise ValueError("found a part of type 'text' without a text; expected {'type': 'text', 'text': ...}")
    if not isinstance(part, dict) or kind not in ("text", "image", "video"):
        raise ValueError(f"found a content part of type {kind!r}; Long-VITA takes text, image, image_url, video and video_url")
    return dict(part)


def texts_of(conversation: Any) -> Iterator[str]:
    """The texts of a conversation with parts, or of a batch of these."""
    if isinstance(conversation, dict):
        yield from (part["text"] for part in conversation["content"] if part["type"] == "text")
        return
    for item in conversation:
        yield from texts_of(item)


def media(messages: Sequence[dict[str, Any]], kind: str) -> list[Any]:
    """The pictures ("image") or videos ("video") that messages with parts name, in order."""
    parts = [part for message in messages for part in message["content"] if part["type"] == kind]
    found = [next((part[key] for key in _MEDIA_KEYS[kind] if part.get(key) is not None), None) for part in parts]
    return [item for item in found if item is not None]


def answer_spans(messages: Sequence[dict[str, Any]], render: Callable[..., str]) -> tuple[str, list[tuple[int, int]]]:
    """The rendered text, and where in it the assistant's turns are, what ends them included: what training supervises.

    Args:
        messages: a conversation.
        render: (messages, add_generation_prompt) -> text.

    Raises:
        ValueError: the template does not render turn after turn, so that turns cannot be told apart.
    """
    text = render(messages, False)
    spans = []
    for place, message in enumerate(messages):
        if message["role"] == "assistant":
            before, after = render(messages[:place], True) if place else "", render(messages[: place + 1], False)
            if not (after.startswith(before) and text.startswith(after)):
                raise ValueError("the chat template does not render turn after turn; mark the answers in it by {% generation %} tags")
            spans.append((len(before), len(after)))
    return text, spans


def answer_mask(spans: Sequence[tuple[int, int]], offsets: Sequence[tuple[int, int]]) -> list[int]:
    """1 for each token that starts inside a span, else 0. Padding has empty offsets and is never inside."""
    return [int(any(start <= first < end for start, end in spans) and last > first) for first, last in offsets]
