"""The one function that every reader calls: a row of any accepted layout becomes the plain layout of docs/data.md."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mindspeed_vita.data.schema.boxes import place_boxes
from mindspeed_vita.data.schema.content import PartMedia, text_of
from mindspeed_vita.data.schema.found import is_empty, kind, shown
from mindspeed_vita.data.schema.keys import METADATA, REFUSED, refuse_keys, unknown_keys
from mindspeed_vita.data.schema.media import Medium, media_of
from mindspeed_vita.data.schema.turns import PAIRS, TURN_FIELDS, chat_fields, turns_of, with_tags

_MEDIA = ("image", "images", "video", "videos")
_UNKNOWN = "unknown_keys"
_SCHEMA = '{"messages": [{"role": ..., "content": ...}], "images": [...], "videos": [...]}'
LAYOUT_FIELDS = (*TURN_FIELDS, "input_ids", *(field for pair in PAIRS for field in pair), "text")
"""Fields that can make a row a sample."""
USED_FIELDS = frozenset((*LAYOUT_FIELDS, "labels", "input", "history", "system", "objects", *_MEDIA, *REFUSED, "loss", "weight"))
"""Every field that is read."""


def plain_row(row: Any, where: str) -> dict[str, Any]:
    """A row in the plain layout; one that is plain already stays the same.

    Plain is a row with either `messages` ({role, content} and perhaps loss, content as text with tags), `text`, or `input_ids` and
    `labels`; with `images` (paths) and `videos` (paths, or lists of the paths of frames) if it has any; with `objects` for boxes in
    pixels; and with `unknown_keys`, the keys that were not used.

    Args:
        row: parsed JSON, or what an adapter gave.
        where: file and line, for messages.

    Raises:
        ValueError: no such row, or a key that changes what is learnt and cannot be honoured.
    """
    if not isinstance(row, Mapping):
        raise ValueError(f"{where}: found {kind(row)}, expected an object {_SCHEMA}")
    refuse_keys(row, REFUSED, where)
    for name in ("loss", "weight"):
        if row.get(name) is not None and row[name] not in (1, True):
            raise ValueError(f"{where}: {name}: found {shown(row[name])} for a whole row; leave the row out, or use ratio in the mixture")
    images, videos = media_of(row, "image", where), media_of(row, "video", where)
    listed = row.get(_UNKNOWN)
    unknown = [name for name in listed if isinstance(name, str)] if isinstance(listed, list) else []
    fields = chat_fields(row)
    if fields:
        plain = _chat(row, images, videos, unknown, where)
    elif not is_empty(row.get("input_ids")):
        fields, plain = ("input_ids", "labels", "attention_mask"), _tokenised(row, where)
    elif not is_empty(row.get("text")):
        fields, plain = ("text",), {"text": text_of(row["text"], PartMedia(), f"{where}: text")}
        if not is_empty(row.get("system")):
            raise ValueError(f"{where}: system: found with text, which has no turns; expected messages")
    else:
        raise ValueError(f"{where}: found keys {sorted(map(str, row))}, expected a list of turns under 'messages' or 'conversations', or "
                         f"another layout of docs/data.md ({', '.join(LAYOUT_FIELDS)})")  # fmt: skip
    if "messages" not in plain and not is_empty(row.get("objects")):
        raise ValueError(f"{where}: objects: found with {fields[0]}; boxes go with turns")
    known = {*fields, "system", "objects", *_MEDIA, *REFUSED, "loss", "weight", _UNKNOWN}
    unknown += unknown_keys(row, known, METADATA)
    media = {name: paths for name, paths in (("images", images), ("videos", videos)) if paths}
    return {**plain, **media, **({_UNKNOWN: sorted(set(unknown))} if unknown else {})}


def _chat(row: Mapping[str, Any], images: list[Medium], videos: list[Medium], unknown: list[str], where: str) -> dict[str, Any]:
    """Messages, and objects where boxes are in pixels; paths in parts are added to the row's media."""
    found = PartMedia()
    turns = turns_of(row, found, unknown, where)
    for name, own, parts in (("image", images, found.images), ("video", videos, found.videos)):
        if own and parts:
            raise ValueError(f"{where}: found {name}s in the parts of turns and under '{name}s' too, expected one place for all of them")
        own += parts
        turns = with_tags(turns, len(own), f"<{name}>")
    boxes = place_boxes(turns, row.get("objects"), len(images), where)
    if not boxes:
        return {"messages": turns}
    return {"messages": turns, "objects": {"bbox": [list(box.corners) for box in boxes], "image_id": [box.image for box in boxes]}}


def _tokenised(row: Mapping[str, Any], where: str) -> dict[str, Any]:
    ids, labels = (_numbers(row.get(name), f"{where}: {name}") for name in ("input_ids", "labels"))
    if len(ids) != len(labels):
        raise ValueError(f"{where}: found {len(ids)} input_ids and {len(labels)} labels, expected as many of both")
    wrong = next((place for place, (token, label) in enumerate(zip(ids, labels)) if label not in (-100, token)), None)
    if wrong is not None:
        raise ValueError(f"{where}: labels[{wrong}]: found {labels[wrong]} for the token {ids[wrong]}, expected that token or -100; labels "
                         "are not shifted, as transformers has them")  # fmt: skip
    mask = row.get("attention_mask")
    if mask is not None and (not isinstance(mask, (list, tuple)) or len(mask) != len(ids) or any(value != 1 for value in mask)):
        raise ValueError(f"{where}: attention_mask: found {shown(mask)}, expected 1 for each token; cut padding off: packing needs none")
    return {"input_ids": ids, "labels": labels}


def _numbers(values: Any, where: str) -> list[int]:
    if not isinstance(values, (list, tuple)) or not all(type(value) is int for value in values):
        raise ValueError(f"{where}: found {kind(values)}, expected numbers of tokens in a list; input_ids and labels go together")
    return list(values)
