"""JSONL files that a run writes, read again and again while they grow."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Optional, TypeGuard

Entry = Mapping[str, Any]
LARGEST = 1e100
"""A number that is larger counts as not finite."""
_MOST_STEPS = 2**53


class JsonLines:
    """One file. Damaged lines are counted and left out; a last line without its end is read once it is whole.

    Args:
        path: the file; it may be absent.
        fault: says what is wrong with a parsed line; empty: nothing.
    """

    def __init__(self, path: Path, fault: Callable[[Any], str]) -> None:
        self.path, self._fault = path, fault
        self.entries: list[Entry] = []
        """Whole lines, in the file's order."""
        self._begin(None)

    def _begin(self, inode: Optional[int]) -> None:
        self.entries.clear()
        self._inode, self._offset, self._lines, self._damaged, self._first = inode, 0, 0, 0, ""

    def read(self) -> None:
        """Reads what was added. A file that was replaced or cut, as a restart of the run does it, is read anew.

        Raises:
            OSError: the file cannot be read.
        """
        if not self.path.is_file():
            self._begin(None)
            return
        with self.path.open("rb") as file:
            found = os.fstat(file.fileno())
            if found.st_ino != self._inode or found.st_size < self._offset:
                self._begin(found.st_ino)
            file.seek(self._offset)
            for line in file:
                if not line.endswith(b"\n"):
                    break
                self._offset += len(line)
                self._add(line)

    def _add(self, line: bytes) -> None:
        self._lines += 1
        try:
            entry = json.loads(line)
            fault = self._fault(entry) if isinstance(entry, dict) else "it is no JSON object"
        except (ValueError, RecursionError):
            fault = "it is no JSON"
        if not fault:
            self.entries.append(entry)
            return
        self._damaged += 1
        self._first = self._first or f"line {self._lines}: {fault}"

    @property
    def note(self) -> str:
        """One sentence about all damaged lines; empty: there is none."""
        if not self._damaged:
            return ""
        lines = "1 damaged line was" if self._damaged == 1 else f"{self._damaged:,} damaged lines were"
        return f"{self.path}: {lines} left out ({self._first}); look at the file, and restore it from a copy if you need them"


def is_number(value: Any) -> TypeGuard[int | float]:
    """Whether a value of a line is a number."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def is_step(value: Any) -> bool:
    """Whether a value is a number of steps."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < _MOST_STEPS


def finite(entry: Entry, key: str) -> Optional[float]:
    """A number of a line; None where it is absent, no number or not finite."""
    value = entry.get(key)
    if not is_number(value) or not -LARGEST <= value <= LARGEST:  # NaN compares as false
        return None
    return float(value)
