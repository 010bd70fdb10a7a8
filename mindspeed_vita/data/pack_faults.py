"""How the process that reads packs for the ranks of a host tells them why it cannot. It needs no memory for that when it happens.

The place is one file in the folder of the shared packs. It is written at the start, in its full size, and later changed in place.
Each page holds one fault: a line of JSON at its beginning, and at its end one byte for each follower that has read it.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Optional

FILE = "faults"
_PAGE = 4096
_PAGES = 16
"""A leader has one fault in each of its loader processes at most; then the run ends."""
_UNUSED, _HEARD = b"\0", b"x"
_LOOK = 0.01
"""Seconds between two looks for followers that have not read a fault."""


@dataclass(frozen=True, kw_only=True)
class PackFault:
    """What a follower gets in the place of a pack."""

    stream: int
    """Number of the iteration."""
    pack: int
    message: str
    of_user: bool
    """Whether it is a fault of the data or the machine; otherwise it is one of the program."""


def make_pages(folder: Path) -> None:
    """Takes the memory for the faults of a folder. Raises OSError where there is none."""
    (folder / FILE).write_bytes(_UNUSED * (_PAGE * _PAGES))


def tell(folder: Path, fault: PackFault, *, followers: int, seconds: float) -> None:
    """Writes a fault down, and waits for the followers to read it.

    Args:
        folder: of the shared packs.
        fault: a long message is cut.
        followers: how many there are.
        seconds: longest wait.
    """
    with suppress(FileNotFoundError):  # the folder is gone: nobody listens
        handle = os.open(folder / FILE, os.O_RDWR)
        try:
            start = _write(handle, _line(fault, _PAGE - followers))
            deadline = time.monotonic() + seconds
            while start is not None and time.monotonic() < deadline and (folder / FILE).exists():
                if os.pread(handle, followers, start + _PAGE - followers) == _HEARD * followers:
                    return
                time.sleep(_LOOK)
        finally:
            os.close(handle)


def find(folder: Path, *, stream: int, pack: int, follower: int) -> Optional[PackFault]:
    """The fault that was told of a pack; None: none was. It counts as read by a follower.

    Args:
        folder: of the shared packs; where it is gone, nothing was told.
        stream: number of the iteration.
        pack: its number.
        follower: which of the followers asks, from 0.
    """
    try:
        handle = os.open(folder / FILE, os.O_RDWR)
    except FileNotFoundError:
        return None
    try:
        if os.pread(handle, 1, 0) == _UNUSED:
            return None
        for start in range(0, _PAGE * _PAGES, _PAGE):
            page = os.pread(handle, _PAGE, start)
            if page[:1] == _UNUSED:
                break
            fault = PackFault(**json.loads(page.partition(b"\n")[0]))
            if (fault.stream, fault.pack) == (stream, pack):
                os.pwrite(handle, _HEARD, start + _PAGE - 1 - follower)
                return fault
    finally:
        os.close(handle)
    return None


def _write(handle: int, line: bytes) -> Optional[int]:
    """Writes into the first unused page, its first byte last; returns where the page begins, or None where all are used."""
    fcntl.flock(handle, fcntl.LOCK_EX)
    try:
        for start in range(0, _PAGE * _PAGES, _PAGE):
            if os.pread(handle, 1, start) == _UNUSED:
                os.pwrite(handle, line[1:], start + 1)
                os.pwrite(handle, line[:1], start)
                return start
        return None
    finally:
        fcntl.flock(handle, fcntl.LOCK_UN)


def _line(fault: PackFault, room: int) -> bytes:
    """A fault as one line of at most `room` bytes: a message that is longer loses its middle."""
    kept, message = len(fault.message), fault.message
    while len(line := json.dumps(asdict(replace(fault, message=message))).encode() + b"\n") > room:
        kept = kept * 9 // 10
        message = f"{fault.message[: kept // 2]} ... {fault.message[-(kept // 2) :]}"
    return line
