"""A turn made of parts (texts, pictures, videos), as the field's evaluators and OpenAI's API write it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from mindspeed_vita.data.sample import Message
from mindspeed_vita.inference.request import Request

_PNG_MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "I", "I;16")


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


class PictureFiles:
    """Files for pictures that an evaluator holds in memory; named by their content, without loss.

    Args:
        folder: that every rank sees under the same path.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path_of(self, picture: Any) -> str:
        """The file of a PIL picture."""
        if picture.mode not in _PNG_MODES:
            picture = picture.convert("RGB")
        name = hashlib.sha256(f"{picture.mode} {picture.size} {picture.getpalette()}".encode() + picture.tobytes()).hexdigest()[:32]
        path = self.folder / f"{name}.png"
        if not path.exists():
            self.folder.mkdir(parents=True, exist_ok=True)
            partial = path.with_suffix(f".{id(picture)}.partial")
            picture.save(partial, "PNG", compress_level=1)
            partial.replace(path)
        return str(path)
