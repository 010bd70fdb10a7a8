"""Tar shards in the WebDataset layout: files of one sample share a name and follow each other; media are read by offset."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any, BinaryIO

from mindspeed_vita.data.formats.tar_members import Member, tar_members
from mindspeed_vita.data.media.members import tar_reference
from mindspeed_vita.data.schema import plain_row
from mindspeed_vita.data.schema.turns import chat_fields
from mindspeed_vita.hf.frames import natural_key

PICTURES = ("jpg", "jpeg", "png", "webp", "bmp", "gif", "tif", "tiff", "avif", "jp2", "ppm")
VIDEOS = ("mp4", "m4v", "mov", "3gp", "mkv", "webm", "avi", "mpg", "mpeg", "vob", "ts", "flv", "ogv", "wmv")
_FIELDS = {"image": ("images", "image"), "video": ("videos", "video")}
"""Fields in which the JSON may name a sample's media."""
_LONGEST_TEXT = 64 << 20
"""Bytes of one .json or .txt member."""


def webdataset_rows(path: str) -> Iterator[dict[str, Any]]:
    """Samples of a shard, in their order.

    A sample is KEY.json (turns) or KEY.txt (a caption), with pictures KEY.jpg or KEY.0.jpg, KEY.1.jpg and videos KEY.mp4. Media are in
    the order in which the JSON names them, else in natural order. A JSON without turns beside a caption is img2dataset's record of where
    the picture came from. A dataset.json without turns describes the whole shard.

    Raises:
        ValueError: no whole and uncompressed tar file, or a sample without turns, or one that is not in one piece; names the file, the
            sample's number and key, and the field.
    """
    try:
        with open(path, "rb") as file:
            seen: set[tuple[int, str]] = set()
            number = 0
            for key, group in groupby(tar_members(path), key=_key):
                members = list(group)
                if _describes_shard(file, members, path):
                    continue
                number += 1
                where = f"{path}: item {number} ({key[1]})"
                if key in seen:
                    raise ValueError(f"{where}: found files of this name at two places; the files of a sample must follow each other")
                seen.add(key)
                yield _sample(path, file, key[1], members, where)
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror or error}); check data_paths in the mixture") from error


def _key(member: Member) -> tuple[int, str]:
    folder, name = os.path.split(member.name)
    return member.archive, os.path.join(folder, name.split(".", 1)[0])


def _describes_shard(file: BinaryIO, members: Sequence[Member], path: str) -> bool:
    if [os.path.basename(member.name) for member in members] != ["dataset.json"]:
        return False
    row = _json(file, members[0], path)
    return not (isinstance(row, dict) and _is_sample(row))


def _is_sample(row: dict[str, Any]) -> bool:
    """Whether a JSON is a sample of its own: turns or tokens. `text` alone may be what img2dataset noted."""
    return bool(chat_fields(row) or row.get("input_ids"))


def _sample(path: str, file: BinaryIO, key: str, members: Sequence[Member], where: str) -> dict[str, Any]:
    pictures, videos = ([member for member in members if member.suffix in known] for known in (PICTURES, VIDEOS))
    texts: dict[str, Member] = {}
    for member in members:
        if member not in pictures and member not in videos and texts.setdefault(member.suffix, member) is not member:
            raise ValueError(f"{where}: found {texts[member.suffix].name} and {member.name}, expected one {member.suffix} for each sample")
    row = _json(file, texts["json"], f"{where}: json") if "json" in texts else None
    if row is not None and not isinstance(row, dict):
        raise ValueError(f"{where}: json: found {type(row).__name__}, expected an object with turns")
    given = row or {}
    media = {kind: _media(path, key, found, given, kind, where) for kind, found in (("image", pictures), ("video", videos))}
    if row is not None and ("txt" not in texts or _is_sample(row)):
        own = {name: None for kind, found in media.items() if found for name in _FIELDS[kind]}
        return plain_row({**row, **own, **{f"{kind}s": found for kind, found in media.items() if found}}, where)
    if "txt" in texts:
        tags = "<image>" * len(media["image"]) + "<video>" * len(media["video"])
        turns = [{"role": "user", "content": tags}, {"role": "assistant", "content": _text(file, texts["txt"], where)}]
        return {"messages": turns, "images": media["image"], "videos": media["video"]}
    raise ValueError(f"{where}: found fields {', '.join(sorted(texts)) or 'of pictures only'}; expected json (turns) or txt (a caption)")


def _media(path: str, key: str, members: Sequence[Member], row: dict[str, Any], kind: str, where: str) -> list[str]:
    """References to those of a sample's pictures, or its videos, that lie in the shard."""
    if not members:
        return []
    field = next((name for name in _FIELDS[kind] if row.get(name)), "")
    names = row.get(field) or []
    names = [names] if isinstance(names, str) else names
    if names and not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
        raise ValueError(f"{where}: json: {field}: found {type(names).__name__}, expected the names of files")
    if len(names) == len(members) == 1:  # there is no order to tell, and the name is often that of the file it was made from
        names = []
    ordered = [_named(key, members, name, f"{where}: json: {field}") for name in names]
    ordered = ordered or sorted(members, key=lambda member: natural_key(member.name))
    return [tar_reference(os.path.basename(path), member.offset, member.size, member.name) for member in ordered]


def _named(key: str, members: Sequence[Member], name: str, where: str) -> Member:
    """The member that a name in the JSON means: its whole name, its name without folders, or what follows the key."""
    base = os.path.basename(key)
    for wanted in (name, os.path.basename(name), f"{base}.{name}"):
        found = [member for member in members if wanted in (member.name, os.path.basename(member.name))]
        if len(found) == 1:
            return found[0]
    raise ValueError(f"{where}: found {name!r}, expected one of the sample's files {', '.join(member.name for member in members)}")


def _json(file: BinaryIO, member: Member, where: str) -> Any:
    try:
        return json.loads(_text(file, member, where).removeprefix("\ufeff"))
    except (json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"{where}: found no JSON ({error}); expected an object with turns") from error


def _text(file: BinaryIO, member: Member, where: str) -> str:
    if member.size > _LONGEST_TEXT:
        raise ValueError(f"{where}: {member.name}: has {member.size:,} bytes, at most {_LONGEST_TEXT:,} are read")
    try:
        return os.pread(file.fileno(), member.size, member.offset).decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"{where}: {member.name}: is not UTF-8 ({error.reason} at byte {error.start})") from error
