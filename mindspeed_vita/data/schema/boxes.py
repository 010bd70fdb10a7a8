"""Boxes of a row (`objects`): names and coordinates that stand for <ref-object> and <bbox> in its turns.

A name becomes <ref>name</ref>, a box <box>[[x1, y1, x2, y2]]</box>, a point <box>[[x, y]]</box>, in thousandths of the picture's width and
height, which are the tokens that Long-VITA's vocabulary has for them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from mindspeed_vita.data.schema.content import whole_text
from mindspeed_vita.data.schema.found import is_empty, kind, shown

NAME, BOX = "<ref-object>", "<bbox>"
_EXPECTED = '{"ref": [names], "bbox": [[x1, y1, x2, y2], ...]}'
_SCALES = {"norm1": 1.0, "norm1000": 1000.0}
_KEYS = ("ref", "bbox", "bbox_type", "image_id", "width", "height")


class Box(NamedTuple):
    """A box in pixels of one picture."""

    image: int
    """Place of the picture in the row."""
    corners: tuple[float, ...]
    """x1, y1, x2, y2, or x, y of a point."""

    def text(self, width: int, height: int) -> str:
        """As it is learnt.

        Args:
            width, height: of the picture, in pixels.

        Raises:
            ValueError: it reaches beyond the picture.
        """
        return box_text([value / side for value, side in zip(self.corners, (width, height) * 2)], f"box {list(self.corners)}")


def box_text(shares: Sequence[float], where: str) -> str:
    """A box from shares of width and height.

    Raises:
        ValueError: a share is not from 0 to 1.
    """
    if not all(0 <= share <= 1 for share in shares):
        raise ValueError(f"{where}: lies outside the picture")
    return f"<box>[[{', '.join(str(round(1000 * share)) for share in shares)}]]</box>"


def place_boxes(turns: list[dict[str, Any]], objects: Any, num_images: int, where: str) -> list[Box]:
    """Writes names into the turns, and boxes that are shares of the picture; returns those in pixels, for <bbox> that remain.

    Args:
        turns: with text as content; changed.
        objects: the row's value.
        num_images: pictures of the row.
        where: for messages.

    Raises:
        ValueError: another form, or not one name and one box for each <ref-object> and <bbox>.
    """
    if is_empty(objects):
        return []
    where = f"{where}: objects"
    if not isinstance(objects, Mapping) or set(objects) - set(_KEYS) or not {"ref", "bbox"} & set(objects):
        raise ValueError(f"{where}: found {kind(objects)}, expected {_EXPECTED}")
    names, boxes = _list(objects, "ref", where), _list(objects, "bbox", where)
    if not all(isinstance(name, str) for name in names):
        raise ValueError(f"{where}: ref: found {shown(names)}, expected names")
    names = [whole_text(name, f"{where}: ref") for name in names]
    marked = next((name for name in names if NAME in name or BOX in name), None)
    if marked is not None:
        raise ValueError(f"{where}: ref: found {shown(marked)}; a name holds neither {NAME} nor {BOX}")
    for tag, key, values in ((NAME, "ref", names), (BOX, "bbox", boxes)):
        tags = sum(turn["content"].count(tag) for turn in turns)
        if tags != len(values):
            raise ValueError(f"{where}: found {len(values)} entries of {key} for {tags} {tag} in the turns, expected one each")
    kind_of_box = objects.get("bbox_type") or "real"
    if kind_of_box not in ("real", *_SCALES):
        raise ValueError(f"{where}: bbox_type: found {shown(kind_of_box)}, expected real, norm1 or norm1000")
    owners = _list(objects, "image_id", where) or [0] * len(boxes)
    found = [_box(box, owner, num_images, f"{where}: bbox[{place}]") for place, (box, owner) in enumerate(zip(boxes, owners))]
    if len(found) != len(boxes):
        raise ValueError(f"{where}: found {len(owners)} entries of image_id for {len(boxes)} boxes, expected one each")
    _fill(turns, NAME, [f"<ref>{name}</ref>" for name in names])
    if kind_of_box == "real":
        return found
    scale = _SCALES[kind_of_box]
    texts = [box_text([value / scale for value in box.corners], f"{where}: {list(box.corners)}") for box in found]
    _fill(turns, BOX, texts)
    return []


def fill_boxes(content: str, texts: Sequence[str]) -> str:
    """A text with the first of texts for its first <bbox>, and so on."""
    head, *rest = content.split(BOX)
    return head + "".join(text + part for text, part in zip(texts, rest))


def _fill(turns: list[dict[str, Any]], tag: str, texts: list[str]) -> None:
    left = iter(texts)
    for turn in turns:
        head, *rest = turn["content"].split(tag)
        turn["content"] = head + "".join(next(left) + part for part in rest)


def _list(objects: Mapping[str, Any], name: str, where: str) -> list[Any]:
    value = objects.get(name)
    if value is None:
        return []
    if not isinstance(value, Sequence) or isinstance(value, (str, bytes)):
        raise ValueError(f"{where}: {name}: found {kind(value)}, expected a list")
    return list(value)


def _box(value: Any, owner: Any, num_images: int, where: str) -> Box:
    if not isinstance(value, Sequence) or len(value) not in (2, 4) or not all(_is_number(number) for number in value):
        raise ValueError(f"{where}: found {kind(value)}, expected [x1, y1, x2, y2] or [x, y]")
    if not isinstance(owner, int) or not 0 <= owner < num_images:
        raise ValueError(f"{where}: belongs to picture {shown(owner)} of {num_images}; image_id counts from 0")
    return Box(owner, tuple(float(number) for number in value))


def _is_number(value: Any) -> bool:
    """Whether a value is a number that a float can hold; an integer of JSON may have hundreds of digits."""
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:
        return False
