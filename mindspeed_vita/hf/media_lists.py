"""The pictures and videos of a processor's call, sorted to the texts that they belong to.

This file travels with exported checkpoints.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

VIDEO_PATH = re.compile(r"<video_path>(.*?)<video_path>")
"""How the published chat template writes the path of a video into the text."""
_IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")


def take_video_paths(texts: list[str], videos: Any) -> tuple[list[str], Any]:
    """Remove the published template's <video_path>...<video_path>; they are used only where no videos are given."""
    if not any("<video_path>" in text for text in texts):
        return texts, videos
    if videos is None or len(videos) == 0:
        videos = [VIDEO_PATH.findall(text) for text in texts]
    return [VIDEO_PATH.sub("", text) for text in texts], videos


def is_list(value: Any) -> bool:
    """A list or a tuple."""
    return isinstance(value, (list, tuple))


def is_list_of_videos(value: Any) -> bool:
    """A list of videos, rather than one video as a list of frames."""
    if not is_list(value) or not value:
        return is_list(value)
    if all(isinstance(item, str) for item in value):
        return not all(item.lower().endswith(_IMAGE_SUFFIXES) for item in value)
    return not all(hasattr(item, "size") and not is_list(item) and getattr(item, "ndim", 3) == 3 for item in value)


def per_text(media: Any, num_tags: Sequence[int], name: str, nested: Any) -> list[list[Any]]:
    """Media as one list per text: given so, or flat in the order of the tags.

    Args:
        media: what the caller gave; None: nothing.
        num_tags: tags of each text.
        name: "image" or "video", for the message.
        nested: whether an item is a list of media and not a medium.

    Raises:
        ValueError: another number of media than of tags.
    """
    if media is None:
        media = []
    if not nested(media):
        media = [media]
    media = [item for item in media if item is not None]
    if len(media) == len(num_tags) and all(nested(item) for item in media):
        return [list(item) for item in media]
    flat = list(_flatten(media, nested))
    if len(flat) != sum(num_tags):
        raise ValueError(f"found {sum(num_tags)} <{name}> tags for {len(flat)} {name}s, expected one tag each")
    rest = iter(flat)
    return [[next(rest) for _ in range(count)] for count in num_tags]


def _flatten(media: Any, nested: Any) -> Iterator[Any]:
    for item in media:
        if nested(item):
            yield from _flatten(item, nested)
        elif item is not None:
            yield item
