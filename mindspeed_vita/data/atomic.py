"""Files and folders that appear only when they are whole, also where several hosts write the same ones at a time."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4


def temporary_beside(target: Path) -> Path:
    """A name beside the target that nobody else uses, on whatever host or in whatever container they run."""
    return target.with_name(f"{target.name}.{platform.node()[:32]}.{uuid4().hex}.tmp")


def publish_folder(temporary: Path, target: Path, meta: str) -> None:
    """Gives a finished folder its name; where another process was faster with the same content, that one stays.

    Args:
        temporary: the finished folder; still there afterwards if the other one stays.
        target: its name.
        meta: file by which a whole folder is known.

    Raises:
        OSError: it cannot be renamed, and nothing whole lies there.
    """
    try:
        os.rename(temporary, target)
    except OSError:
        if not (target / meta).exists():
            raise


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
        raise ValueError(f"{reason}; set {setting} to a folder that all hosts see and that this user may write") from error
