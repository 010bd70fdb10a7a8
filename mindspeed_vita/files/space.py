"""Whether a disk has room for what is about to be written."""

from __future__ import annotations

import shutil
from pathlib import Path

_SMALL_FILES = 32 << 20
"""Bytes kept for what comes with the weights: tokenizer, code, configuration."""


def check_space(folder: Path, needed: int, *, advice: str) -> None:
    """Refuses to begin what cannot end.

    Args:
        folder: where it is written; the nearest folder above that exists is asked.
        needed: bytes of weights still to write.
        advice: what to do.

    Raises:
        ValueError: the disk has less room.
    """
    place = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(place).free
    if free < needed + _SMALL_FILES:
        raise ValueError(f"{folder} needs {gigabytes(needed + _SMALL_FILES)}, its disk has {gigabytes(free)} free; {advice}")


def gigabytes(size: int) -> str:
    """A number of bytes for people; below a tenth of a GB in MB."""
    return f"{size / 1e9:,.2f} GB" if size >= 1e8 else f"{size / 1e6:,.1f} MB"
