"""What a failed write says."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_ROOM = {
    errno.ENOSPC: "free space there",
    errno.EDQUOT: "free space there, or have the quota raised,",
    errno.EFBIG: "raise the limit of a file's size (ulimit -f)",
}
NO_ROOM = tuple(_ROOM)
"""Faults of a write that has no room: the disk is full, or a quota or the limit of a file's size is reached."""


def room_advice(error: BaseException) -> str:
    """How a user makes room where a write had none, as the beginning of a sentence that "and" or "or" continues; empty: another fault."""
    return _ROOM.get(error.errno or 0, "") if isinstance(error, OSError) else ""


@contextmanager
def naming_where_full(path: Path) -> Iterator[None]:
    """A write that has no room gets this path, if the system's error names none. Other errors stay as they are."""
    try:
        yield
    except OSError as error:
        if error.filename is None and error.errno in NO_ROOM:
            error.filename = str(path)
        raise


@contextmanager
def named_write_fault(path: Path) -> Iterator[None]:
    """A write that fails names the file, which the system's own error does not, and says what to do where it has no room.

    Raises:
        OSError: as the system's, with the file.
    """
    try:
        yield
    except OSError as error:
        advice = f"; {room_advice(error)} and start again" if room_advice(error) else ""
        raise OSError(error.errno, f"cannot be written ({error.strerror}){advice}", str(path)) from error
