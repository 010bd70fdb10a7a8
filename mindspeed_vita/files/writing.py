"""Small files written and synced, and errors that say which file or setting they are about."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mindspeed_vita.files.digest import checksum
from mindspeed_vita.files.write_fault import room_advice


@contextmanager
def naming(place: Path | str) -> Iterator[None]:
    """An OSError that does not say which file it is about, as those of write() on a full disk, gets this path.

    Args:
        place: the file, or what is written where that has no name, for messages.
    """
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = str(place)
        raise


def write_bytes(path: Path, content: bytes) -> str:
    """Writes a file so that it survives a crash; returns its checksum.

    Raises:
        OSError: naming the file.
    """
    with naming(path), path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    return str(checksum(content).hexdigest())


def write_text(path: Path, content: str) -> None:
    """Writes a file of text, in UTF-8. Nothing is synced.

    Raises:
        OSError: naming the file.
    """
    with naming(path):
        path.write_text(content, encoding="utf-8")


def write_json(path: Path, content: Mapping[str, Any]) -> str:
    """As write_bytes, for a JSON file that people may read: sorted keys, one a line."""
    return write_bytes(path, (json.dumps(content, indent=1, sort_keys=True) + "\n").encode())


@contextmanager
def written_below(folder: Path, setting: str) -> Iterator[None]:
    """Names the setting where a folder, or something below it, cannot be made or written.

    Raises:
        ValueError: it cannot be.
    """
    try:
        yield
    except OSError as error:
        place = Path(os.fsdecode(error.filename)).absolute() if isinstance(error.filename, (str, bytes)) else None
        if place is None or not (place.is_relative_to(folder.absolute()) or folder.absolute().is_relative_to(place)):
            raise
        reason = f"{folder} cannot be written ({error.strerror} at {place})"
        room = f"{room_advice(error)} or " if room_advice(error) else ""
        raise ValueError(f"{reason}; {room}set {setting} to a folder that all hosts see and that this user may write") from error
