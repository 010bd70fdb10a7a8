"""Tar shards in the WebDataset layout: files of one sample share a name and follow each other; pictures are read by offset."""

from __future__ import annotations

import json
import os
import tarfile
from collections.abc import Iterator
from itertools import groupby
from typing import Any

from mindspeed_vita.data.formats.messages import turns_of, with_tags
from mindspeed_vita.data.media.members import tar_reference
from mindspeed_vita.hf.frames import natural_key

PICTURES = ("jpg", "jpeg", "png", "webp", "bmp", "gif", "tif", "tiff")
_LONGEST_TEXT = 64 << 20
"""Bytes of one .json or .txt member."""


def webdataset_rows(path: str) -> Iterator[dict[str, Any]]:
    """Samples of a shard: KEY.json (turns) or KEY.txt (a caption), and pictures KEY.jpg or KEY.0.jpg, KEY.1.jpg in natural order.

    Raises:
        ValueError: no tar file, a compressed one, or a sample without turns; names the file, the sample's number and key, and the field.
    """
    try:
        with tarfile.open(path, "r:") as shard:
            members = (member for member in shard if member.isfile())
            for number, (key, group) in enumerate(groupby(members, key=_key), start=1):
                yield _sample(path, shard, list(group), f"{path}: item {number} ({key})")
    except (tarfile.TarError, EOFError) as error:
        raise ValueError(f"{path}: is no whole, uncompressed tar file ({error}); pictures are read from it by offset") from error
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror or error}); check data_paths in the mixture") from error


def _key(member: tarfile.TarInfo) -> str:
    folder, name = os.path.split(member.name)
    return os.path.join(folder, name.split(".", 1)[0])


def _sample(path: str, shard: tarfile.TarFile, members: list[tarfile.TarInfo], where: str) -> dict[str, Any]:
    pictures = sorted((m for m in members if m.name.rpartition(".")[2].lower() in PICTURES), key=lambda m: natural_key(m.name))
    texts = {m.name.rpartition(".")[2].lower(): m for m in members if m not in pictures}
    images = [tar_reference(os.path.basename(path), m.offset_data, m.size, m.name) for m in pictures]
    if "json" in texts:
        row = _json(shard, texts["json"], where)
        return {"messages": with_tags(turns_of(row, where), len(images)), "images": images, "videos": row.get("videos")}
    if "txt" in texts:
        caption = _text(shard, texts["txt"], where)
        turns = [{"role": "user", "content": "<image>" * len(images)}, {"role": "assistant", "content": caption}]
        return {"messages": turns, "images": images}
    raise ValueError(f"{where}: found fields {', '.join(sorted(texts)) or 'of pictures only'}; expected json (turns) or txt (a caption)")


def _json(shard: tarfile.TarFile, member: tarfile.TarInfo, where: str) -> dict[str, Any]:
    try:
        row = json.loads(_text(shard, member, where))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where}: json: found no JSON ({error}); expected an object with turns") from error
    if not isinstance(row, dict):
        raise ValueError(f"{where}: json: found {type(row).__name__}, expected an object with turns")
    return row


def _text(shard: tarfile.TarFile, member: tarfile.TarInfo, where: str) -> str:
    if member.size > _LONGEST_TEXT:
        raise ValueError(f"{where}: {member.name}: has {member.size:,} bytes, at most {_LONGEST_TEXT:,} are read")
    file = shard.extractfile(member)
    assert file is not None, member.name
    try:
        return file.read().decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"{where}: {member.name}: is not UTF-8 ({error.reason} at byte {error.start})") from error
