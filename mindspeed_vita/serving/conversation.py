"""From a chat request to the inference room's Request: the same text and tags as the exported processor makes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Optional, Protocol

from mindspeed_vita.data.sample import Message
from mindspeed_vita.inference.request import Request
from mindspeed_vita.serving.errors import ApiError
from mindspeed_vita.serving.media_rules import Kind, MediaRefused
from mindspeed_vita.serving.schema import ChatMessage, ImagePart, TextPart

_TAGS = ("<image>", "<video>")


class Rules(Protocol):
    """Says where a medium is. MediaRules does."""

    def declared_size(self, url: str, kind: Kind, number: int) -> Optional[int]:
        """As MediaRules.declared_size."""
        ...

    def path_of(self, url: str, kind: Kind, folder: Path, number: int, most: Optional[int] = None) -> str:
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


def has_media(messages: list[ChatMessage]) -> bool:
    """Whether any message has a picture or a video."""
    return any(not isinstance(part, TextPart) for message in messages if not isinstance(message.content, str) for part in message.content)


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
    media = [_Medium(kind, number, *one) for kind, those in found.items() for number, one in enumerate(those, start=1)]
    paths = _paths(media, rules, folder, limits.media_bytes)
    return Request(messages=tuple(turns), images=tuple(paths["image"]), videos=tuple(paths["video"]))


@dataclass(frozen=True)
class _Medium:
    """One medium of a request."""

    kind: Kind
    number: int
    """Its place among those of its kind, from 1 on."""
    url: str
    at: str
    """The field that it is in."""


def _paths(media: list[_Medium], rules: Rules, folder: Path, most: int) -> dict[Kind, list[str]]:
    """The paths of all media. The sizes that are known before are added up before the first one is written or fetched."""
    sizes, total = [], 0
    for one in media:
        with _refused(one):
            sizes.append(rules.declared_size(one.url, one.kind, one.number))
        total += sizes[-1] or 0
        _check_budget(one, total, most)
    found: dict[Kind, list[str]] = {"image": [], "video": []}
    for one, known in zip(media, sizes):
        own = folder / one.kind
        own.mkdir(exist_ok=True)
        with _refused(one):
            found[one.kind].append(rules.path_of(one.url, one.kind, own, one.number, most - total))
        if known is None:
            total += Path(found[one.kind][-1]).stat().st_size
            _check_budget(one, total, most)
    return found


@contextmanager
def _refused(medium: _Medium) -> Iterator[None]:
    try:
        yield
    except MediaRefused as error:
        raise ApiError(400, f"{medium.at}: {error}", param=medium.at, code="invalid_media") from error


def _check_budget(medium: _Medium, total: int, most: int) -> None:
    if total > most:
        message = f"{medium.at}: the media up to this one have {total:,} bytes, the server allows {most:,} for a request"
        raise ApiError(400, message, param=medium.at, code="invalid_media")


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
