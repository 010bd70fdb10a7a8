"""Pictures and videos of a row: one path or several, as texts, as {path, bytes}, or a video as the list of its frames."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mindspeed_vita.data.schema.found import is_empty, kind

_FRAMES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
_FIELDS = ("path", "url", "file_name", "image", "image_url", "video")
_EXPECTED = "expected a path, {path}, or a list of them"

Medium = str | list[str]
"""A path, "" where the row has none; of a video also the paths of its frames."""


def media_of(row: Mapping[str, Any], name: str, where: str) -> list[Medium]:
    """Pictures ("image") or videos ("video") of a row, from the key with or without s.

    A flat list of pictures under `video` is one video, as the processor takes it.

    Raises:
        ValueError: both keys have a value, or a value is no path.
    """
    single, several = row.get(name), row.get(f"{name}s")
    if not is_empty(single) and not is_empty(several) and single != several:
        raise ValueError(f"{where}: found both {name!r} and '{name}s', expected one of them")
    key = f"{name}s" if is_empty(single) else name
    value = several if is_empty(single) else single
    if value is None or value == "":
        return []
    if isinstance(value, (str, Mapping)):
        return [one_medium(value, name, f"{where}: {key}")]
    if not isinstance(value, Sequence) or isinstance(value, bytes):
        raise ValueError(f"{where}: {key}: found {kind(value)}, {_EXPECTED}")
    if key == "video" and len(value) > 1 and all(isinstance(path, str) and path.lower().endswith(_FRAMES) for path in value):
        return [one_medium(list(value), name, f"{where}: {key}")]
    return [one_medium(item, name, f"{where}: {key}[{place}]") for place, item in enumerate(value)]


def one_medium(value: Any, name: str, where: str) -> Medium:
    """One picture or video.

    Raises:
        ValueError: it is none, or its content stands in the row itself.
    """
    if value is None:
        return ""
    if isinstance(value, str):
        return _path(value, where)
    if isinstance(value, Mapping):
        if not is_empty(value.get("bytes")) or not is_empty(value.get("base64")):
            raise ValueError(f"{where}: found the content of a file in a row of JSON; save it as a file and write its path")
        path = next((value[field] for field in _FIELDS if not is_empty(value.get(field))), None)
        if path is None:
            raise ValueError(f"{where}: found an object with {', '.join(map(str, value)) or 'no keys'}, {_EXPECTED}")
        return one_medium(path, name, where)
    if name == "video" and isinstance(value, Sequence) and value and not isinstance(value, bytes):
        frames = [one_medium(frame, "image", f"{where}[{place}]") for place, frame in enumerate(value)]
        return [frame for frame in frames if isinstance(frame, str)]
    raise ValueError(f"{where}: found {kind(value)}, {_EXPECTED}")


def _path(text: str, where: str) -> str:
    if text.startswith("data:"):
        raise ValueError(f"{where}: found the content of a file in a data URL; save it as a file and write its path")
    return text.removeprefix("file://")
