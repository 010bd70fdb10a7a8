"""From a chat request to the inference room's Request: the same text and tags as the exported processor makes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from mindspeed_vita.data.sample import Message
from mindspeed_vita.inference.request import Request
from mindspeed_vita.serving.errors import ApiError
from mindspeed_vita.serving.media_rules import Kind, MediaRefused
from mindspeed_vita.serving.schema import ChatMessage, ImagePart, TextPart

_TAGS = ("<image>", "<video>")


class Rules(Protocol):
    """Says where a medium is. MediaRules does."""

    def path_of(self, url: str, kind: Kind, folder: Path, number: int) -> str:
        """As MediaRules.path_of."""
        ...


@dataclass(frozen=True, kw_only=True)
class RequestLimits:
    """How much one request may bring."""

    images: int = 64
    videos: int = 4
    choices: int = 8
    media_bytes: int = 1 << 30
    """Of all media together."""
    characters: int = 4_000_000
    """Of all texts together."""


def conversation(messages: list[ChatMessage], rules: Rules, limits: RequestLimits, folder: Path) -> Request:
    """The request that messages stand for. Blocks while media are fetched.

    Args:
        messages: as validated.
        rules: where media may come from.
        limits: how much is allowed.
        folder: an empty folder of the request's own for its media; it must stay until the prompt is computed.

    Raises:
        ApiError: 400; too much, a medium that is not allowed, or a text that holds a tag.
    """
    found: dict[Kind, list[tuple[str, str]]] = {"image": [], "video": []}
    turns, characters = [], 0
    for place, message in enumerate(messages):
        where = f"messages.{place}.content"
        parts = [TextPart(type="text", text=message.content)] if isinstance(message.content, str) else message.content
        text = ""
        for number, part in enumerate(parts):
            at = where if isinstance(message.content, str) else f"{where}.{number}"
            if isinstance(part, TextPart):
                characters += len(part.text)
                text += plain_text(part.text, at)
            else:
                if message.role != "user":
                    raise ApiError(400, f"{at}: media are the user's; found some in a message of the {message.role}", param=at)
                kind: Kind = "image" if isinstance(part, ImagePart) else "video"
                url = part.image_url.url if isinstance(part, ImagePart) else part.video_url.url
                found[kind].append((url, at))
                text += f"<{kind}>\n"
        turns.append(Message("system" if message.role == "developer" else message.role, text))
    if characters > limits.characters:
        raise ApiError(400, f"the texts have {characters:,} characters, the server allows {limits.characters:,}", param="messages")
    for kind, most in (("image", limits.images), ("video", limits.videos)):
        if len(found[kind]) > most:
            raise ApiError(400, f"the request has {len(found[kind])} {kind}s, the server allows {most}", param="messages")
    images, left = _paths(found["image"], "image", rules, folder, limits.media_bytes, limits.media_bytes)
    videos, _ = _paths(found["video"], "video", rules, folder, left, limits.media_bytes)
    return Request(messages=tuple(turns), images=images, videos=videos)


def _paths(media: list[tuple[str, str]], kind: Kind, rules: Rules, folder: Path, left: int, most: int) -> tuple[tuple[str, ...], int]:
    """The paths of one kind's media, and how many of the request's `most` bytes are left after them. The first one too many is the last."""
    own = folder / kind
    own.mkdir()
    paths = []
    for number, (url, at) in enumerate(media, start=1):
        try:
            paths.append(rules.path_of(url, kind, own, number))
        except MediaRefused as error:
            raise ApiError(400, f"{at}: {error}", param=at, code="invalid_media") from error
        left -= Path(paths[-1]).stat().st_size
        if left < 0:
            message = f"{at}: the media up to this one have {most - left:,} bytes, the server allows {most:,} for a request"
            raise ApiError(400, message, param=at, code="invalid_media")
    return tuple(paths), left


def plain_text(text: str, at: str) -> str:
    """The text itself. A tag in it would stand for a medium.

    Args:
        text: of a client.
        at: the field that it is in.

    Raises:
        ApiError: 400; a tag, or half a character.
    """
    for tag in _TAGS:
        if tag in text:
            raise ApiError(400, f"{at}: the text holds the tag {tag}; send media as image_url and video_url parts", param=at)
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ApiError(400, f"{at}: the text holds half a character at {error.start}; write the whole surrogate pair", param=at) from error
    return text
