"""The content of a turn: text, or the parts that OpenAI and Qwen write, whose pictures and videos become tags."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mindspeed_vita.data.schema.found import is_empty, kind, shown
from mindspeed_vita.data.schema.keys import REFUSED_IN_TURN, refuse_keys
from mindspeed_vita.data.schema.media import Medium, one_medium

_KINDS = {"image": "image", "image_url": "image", "input_image": "image", "video": "video", "video_url": "video"}
_TEXTS = ("text", "input_text", "output_text")
_SOURCES = {"image": ("image", "image_url", "url", "path"), "video": ("video", "video_url", "url", "path")}
_ELSEWHERE = ("min_pixels", "max_pixels", "total_pixels", "resized_height", "resized_width", "fps", "nframes", "min_frames", "max_frames")
_ELSEWHERE_TOO = ("video_start", "video_end", "sample_fps")


@dataclass
class PartMedia:
    """What the parts of a conversation name, in order."""

    images: list[Medium] = field(default_factory=list)
    videos: list[Medium] = field(default_factory=list)


def text_of(content: Any, found: PartMedia, where: str) -> str:
    """The content as text with tags; paths in parts are added to found. A part without a path stands for the next of the row's media.

    Raises:
        ValueError: neither text nor parts, or a part that would be learnt otherwise than it asks for.
    """
    if isinstance(content, str):
        return whole_text(content, where)
    if not isinstance(content, Sequence) or isinstance(content, bytes) or not content:
        raise ValueError(f"{where}: found {kind(content)} as content, expected text or a list of parts")
    return "".join(_part(part, found, f"{where}: content[{place}]") for place, part in enumerate(content))


def _part(part: Any, found: PartMedia, where: str) -> str:
    if isinstance(part, str):
        return whole_text(part, where)
    if not isinstance(part, Mapping):
        raise ValueError(f"{where}: found {kind(part)}, expected text or an object with type")
    name = part.get("type") or next((key for key in ("text", "image", "video") if part.get(key) is not None), None)
    refuse_keys(part, REFUSED_IN_TURN, where)
    if isinstance(name, str) and name in _TEXTS:
        if not isinstance(part.get("text"), str):
            raise ValueError(f"{where}: found {kind(part.get('text'))} as text, expected text")
        return whole_text(part["text"], where)
    if not isinstance(name, str) or name not in _KINDS:
        raise ValueError(f"{where}: found a part of type {shown(name)}, expected text, image, image_url, video or video_url")
    for key in (*_ELSEWHERE, *_ELSEWHERE_TOO):
        if not is_empty(part.get(key)):
            raise ValueError(f"{where}: {key}: found {shown(part[key])}; sizes and frames follow from the recipe (data.max_tiles, "
                             "data.max_frames, data.max_fps); leave it out")  # fmt: skip
    what = _KINDS[name]
    source = next((part[key] for key in _SOURCES[what] if not is_empty(part.get(key))), None)
    if source is not None:
        (found.images if what == "image" else found.videos).append(one_medium(source, what, where))
    return f"<{what}>"


def whole_text(text: str, where: str) -> str:
    """The text itself.

    Raises:
        ValueError: it holds half of a surrogate pair, which no tokenizer takes.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        half = f"{text[error.start]!r} at {error.start}"
        raise ValueError(f"{where}: found half a character ({half}), expected text; remove it or write the whole pair") from error
    return text
