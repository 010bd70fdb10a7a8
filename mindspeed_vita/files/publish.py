"""Files and folders that appear under their name only when they are whole and on the disk.

Everything is written under a temporary name next to its target, synced, and renamed. A process that dies at any point leaves the
old content or the new, also where several hosts write the same target at a time.
"""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

from mindspeed_vita.files.write_fault import NO_ROOM

_REPLACED = ".replaced-"
"""In front of the name of a folder that steps aside for its successor."""


class Published(OSError):
    """A folder has its name and is whole, but something failed after that."""


def temporary_beside(target: Path) -> Path:
    """A name next to the target that nobody else uses, on whatever host or in whatever container they run."""
    return target.with_name(f"{target.name}.{platform.node()[:32]}.{uuid4().hex}.tmp")


def remove_temporaries(target: Path) -> None:
    """Removes what killed processes left of a file. Call it where no other process writes the target."""
    for rest in target.parent.glob(f"{target.name}.*.*.tmp"):
        rest.unlink(missing_ok=True)


@contextmanager
def _naming_where_full(target: Path) -> Iterator[None]:
    """A write that has no room gets the target's name, if the error names no file. Others stay as they are: they may be about a read."""
    try:
        yield
    except OSError as error:
        if error.filename is None and error.errno in NO_ROOM:
            error.filename = str(target)
        raise


@contextmanager
def whole_file(target: Path) -> Iterator[Path]:
    """Gives a temporary path to write to. At the end of the block the file there replaces the target.

    Raises:
        OSError: the file cannot be synced or renamed. Whatever the block raises passes through; then the target stays as it was.
    """
    temporary = temporary_beside(target)
    try:
        with _naming_where_full(target):
            yield temporary
            sync(temporary)
            os.replace(temporary, target)
            sync(target.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def whole_folder(target: Path, *, known_by: str) -> Iterator[Path]:
    """Gives a temporary path to make a folder at. At the end of the block it becomes the target, unless a whole one is there.

    Args:
        target: name of the folder.
        known_by: file by which a whole folder is known.

    Raises:
        OSError: as publish_folder. Whatever the block raises passes through; then nothing appears.
    """
    temporary = temporary_beside(target)
    try:
        with _naming_where_full(target):
            yield temporary
            publish_folder(temporary, target, known_by=known_by, replace=False)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def publish_folder(temporary: Path, target: Path, *, known_by: str, replace: bool) -> None:
    """Gives a finished folder its name, by one rename. All that is in it is synced first.

    Args:
        temporary: the finished folder, on the file system of the target; still there afterwards if the other one stays.
        target: its name.
        known_by: file by which a whole folder is known.
        replace: what happens to a folder that has the name already. True: it steps aside, comes back if the rename fails, and is
            removed last. False: it stays if it is whole, because another process was faster with the same content.

    Raises:
        OSError: something cannot be synced or renamed, and no whole folder has the name.
        Published: the folder has the name, but the list of names that it is in cannot be synced.
    """
    for path in temporary.rglob("*"):
        sync(path)
    sync(temporary)
    aside = replaced(target)
    steps_aside = replace and target.exists()
    if steps_aside:
        shutil.rmtree(aside, ignore_errors=True)
        os.rename(target, aside)
    try:
        os.rename(temporary, target)
    except OSError:
        if steps_aside:
            os.rename(aside, target)
        if replace or not (target / known_by).exists():
            raise
        return
    try:
        sync(target.parent)
    except OSError as error:
        raise Published(f"{target} is whole, but a power failure could still undo it: {error}; check the disk") from error
    if steps_aside:
        shutil.rmtree(aside, ignore_errors=True)


def replaced(target: Path) -> Path:
    """Where a folder lies while its successor takes its name."""
    return target.with_name(_REPLACED + target.name)


def restore(target: Path, *, known_by: str) -> None:
    """Gives a whole folder its name back that stepped aside for a successor which never came, and removes one that has a successor.

    Call it where no other process publishes the target.

    Args:
        target: name of the folder.
        known_by: file by which a whole folder is known.
    """
    aside = replaced(target)
    if not target.exists() and (aside / known_by).is_file():
        os.rename(aside, target)
    shutil.rmtree(aside, ignore_errors=True)


def restore_all(folder: Path, pattern: str, *, known_by: str) -> None:
    """As restore, for every folder in `folder` whose name fits a glob pattern."""
    for aside in folder.glob(_REPLACED + pattern):
        restore(folder / aside.name.removeprefix(_REPLACED), known_by=known_by)


def sync(path: Path) -> None:
    """Waits until a file's content, or a folder's list of names, is on the disk.

    Raises:
        OSError: it cannot be.
    """
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
