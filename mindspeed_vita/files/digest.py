"""Checksums of files, read in blocks."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, Union

_BLOCK = 1 << 22


def sha256_of(path: Union[str, Path]) -> str:
    """sha256 of a file's bytes, in hexadecimal digits.

    Raises:
        OSError: the file cannot be read.
    """
    return feed(hashlib.sha256(), path).hexdigest()


def feed(digest: Any, path: Union[str, Path]) -> Any:
    """Feeds a file's bytes to a hash of hashlib, and returns that hash.

    Raises:
        OSError: the file cannot be read.
    """
    with open(path, "rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest
