"""What lmms-eval's tasks hand over, as parts of turns and as sampling; without lmms-eval itself."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Mapping
from typing import Any

from mindspeed_vita.evaluation.clips import Clip
from mindspeed_vita.evaluation.pictures import PictureFolder
from mindspeed_vita.inference.sampling import SamplingParams

_PICTURES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tiff", ".webp")
_TOKENS = 1024
"""Most tokens of an answer where a task names no number."""
_KNOWN = ("until", "max_new_tokens", "temperature", "top_p", "top_k", "min_p", "repetition_penalty", "do_sample", "num_beams", "seed")
_Parts = list[tuple[str, str]]


def parts_of_visuals(context: str, visuals: Any, pictures: PictureFolder) -> _Parts:
    """A text with its visuals. They go first; where the text has one tag for each picture, they take the places of the tags.

    Raises:
        ValueError: a visual that is neither a picture nor a video, or another number of tags than pictures.
    """
    media = [_medium(visual, pictures) for visual in _flat(visuals)]
    tags = context.count("<image>")
    if not tags:
        return [*media, ("text", context)]
    if tags != len(media) or any(kind != "image" for kind, _ in media):
        raise ValueError(f"the text has {tags} <image> tags for {len(media)} visuals; expected one picture for each tag, or no tags")
    texts = context.split("<image>")
    parts: _Parts = []
    for text, medium in zip(texts, media):
        parts += [("text", text), medium]
    return [*parts, ("text", texts[-1].removeprefix("\n"))]


def parts_of_messages(messages: Iterable[Any], pictures: PictureFolder) -> list[tuple[str, _Parts]]:
    """Roles and parts of messages as lmms-eval's protocol has them.

    Raises:
        ValueError: a part that is neither a text, a picture nor a video.
    """
    turns = []
    for message in messages:
        content = message["content"]
        parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
        turns.append((message["role"], [_part(part, pictures) for part in parts]))
    return turns


def _part(part: Mapping[str, Any], pictures: PictureFolder) -> tuple[str, str]:
    if part["type"] == "text":
        return "text", part["text"]
    if part["type"] == "audio":
        raise ValueError("the row has sound, which Long-VITA does not hear; choose another task")
    kind, path = _medium(part["url"], pictures)
    if kind != part["type"]:
        raise ValueError(f"a part of type {part['type']} holds a {kind} ({path})")
    return kind, path


def _medium(visual: Any, pictures: PictureFolder) -> tuple[str, str]:
    if hasattr(visual, "tobytes") and hasattr(visual, "mode"):  # a PIL picture
        return "image", pictures.of_pil(visual)
    clip = None
    if isinstance(visual, Mapping):
        if "video_start" in visual and "video_end" in visual:
            clip = Clip(float(visual["video_start"]), float(visual["video_end"]))
        visual = visual.get("url") or visual.get("path") or visual.get("video")
    if not isinstance(visual, (str, os.PathLike)):
        raise ValueError(f"a visual of type {type(visual).__name__}; expected a picture or the path of a picture or video")
    path = str(visual).removeprefix("file://")
    if not os.path.exists(path):
        raise ValueError(f"{path}: no such file")
    if path.lower().endswith(_PICTURES):
        return "image", path
    return "video", path if clip is None else clip.path(path)


def _flat(visuals: Any) -> Iterable[Any]:
    if visuals is None:
        return
    for visual in visuals:
        if isinstance(visual, (list, tuple)):
            yield from _flat(visual)
        else:
            yield visual


def choosing(settings: Mapping[str, Any]) -> SamplingParams:
    """A task's generation settings. Without do_sample and a temperature, decoding is greedy.

    Raises:
        ValueError: beams, or a value out of range.
    """
    given = {name: value for name, value in settings.items() if value is not None}
    if given.get("num_beams", 1) != 1:
        raise ValueError(f"num_beams={given['num_beams']} is not supported; set --gen_kwargs num_beams=1")
    unknown = sorted(set(given) - set(_KNOWN))
    if unknown:
        warnings.warn(f"long_vita does not use the generation settings {', '.join(unknown)}", stacklevel=2)
    until = given.get("until", ())
    options: dict[str, Any] = {
        "max_tokens": int(given.get("max_new_tokens", _TOKENS)),
        "stop": tuple(text for text in ((until,) if isinstance(until, str) else until) if text),
    }
    if given.get("do_sample", True) and given.get("temperature", 0) > 0:
        names = ("temperature", "top_p", "top_k", "min_p", "seed")
        options |= {name: given[name] for name in names if name in given}
    if "repetition_penalty" in given:
        options["repetition_penalty"] = given["repetition_penalty"]
    return SamplingParams(**options)
