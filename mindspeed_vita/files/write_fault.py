"""What a failed write says."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_ROOM = {
    errno.ENOSPC: "free space",
    errno.EDQUOT: "free space, or have the quota raised,",
    errno.EFBIG: "raise the limit of a file's size (ulimit -f)",
}
NO_ROOM = tuple(_ROOM)
"""Faults of a write that has no room: the disk is full, or a quota or the limit of a file's size is reached."""


def room_advice(error: BaseException) -> str:
    """How a user makes room where a write had none, as the beginning of a sentence that "and" or "or" continues; empty: another fault."""
    return _ROOM.get(error.errno or 0, "") if isinstance(error, OSError) else ""


def save_advice(error: OSError) -> str:
    """As room_advice, for a save: an error without a number, such as torch's, may be that of a full disk."""
    return _ROOM[errno.ENOSPC] if error.errno is None else room_advice(error)


def one_line(error: BaseException) -> str:
    """An error as a command prints it: the file, what is wrong, and how to make room where a write had none."""
    advice = room_advice(error)
    if not isinstance(error, OSError) or (error.filename is None and not advice):
        return " ".join(str(error).split()) or type(error).__name__
    said = str(error.strerror) if error.filename is None else f"{error.filename}: {error.strerror}"
    return f"{said}; {advice} and start again" if advice else said


@contextmanager
def named_write_fault(path: Path) -> Iterator[None]:
    """A write that fails names the file, which the system's own error does not.

    Raises:
        OSError: as the system's, with the file.
    """
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, f"cannot be written ({error.strerror})", str(path)) from error
