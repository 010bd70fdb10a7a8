"""What each loader process is reading, so that a time-out names the file that does not answer.

The processes are forked, and share one piece of memory with the run: a place of fixed size for each. Writing there takes no lock and no
call of the system.
"""

from __future__ import annotations

import mmap
from typing import Optional

_SIZE = 1024
"""Bytes of a place: a length of two bytes and the text's end, which names the file."""
_own: list[memoryview] = []
"""The place of this process, once it has one."""


class AtWork:
    """The places of some loader processes. Made before they are forked.

    Args:
        processes: how many.
    """

    def __init__(self, processes: int) -> None:
        self._places = memoryview(mmap.mmap(-1, max(processes, 1) * _SIZE))

    def take(self, number: int) -> None:
        """This process is the loader process of that number from now on."""
        _own[:] = [self._places[number * _SIZE : (number + 1) * _SIZE]]

    def of(self, number: int) -> Optional[str]:
        """What a loader process noted last; None where it noted nothing yet."""
        place = self._places[number * _SIZE : (number + 1) * _SIZE]
        length = int.from_bytes(place[:2], "little")
        return bytes(place[2 : 2 + length]).decode(errors="replace") if length else None


def note(text: str) -> None:
    """Says what this process is about to read. Does nothing outside of loader processes."""
    if _own:
        encoded = text.encode(errors="backslashreplace")[2 - _SIZE :]  # a path in a row may hold half a character
        place = _own[0]
        place[:2] = b"\0\0"
        place[2 : 2 + len(encoded)] = encoded
        place[:2] = len(encoded).to_bytes(2, "little")
