"""Whether the disk has room for a step, asked before it is written: a disk that fills up in the middle costs the time of a save."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path

from mindspeed_vita.checkpoint.native.ranks import gather, rank, together
from mindspeed_vita.checkpoint.native.shards import Piece
from mindspeed_vita.files.space import gigabytes

_SMALL_FILES = 4 << 20
"""Bytes for headers, state, recipe and checksums."""


def check_room(directory: Path, step: int, pieces: Iterable[Piece]) -> None:
    """Refuses to begin what cannot end. Collective.

    Quotas and the limit of a file's size are not seen; a write that meets one fails as on a full disk.

    Args:
        directory: folder of the run.
        step: that is to be saved.
        pieces: what this rank writes.

    Raises:
        SaveFailed: all ranks' pieces together do not fit; says what is needed, what is free and where.
    """
    needed = sum(gather(sum(piece.data.nbytes for piece in pieces))) + _SMALL_FILES
    with together(directory):
        if rank() == 0:
            place = next(path for path in (directory, *directory.absolute().parents) if path.exists())
            free = shutil.disk_usage(place).free
            if free < needed:
                raise OSError(f"step {step} needs {gigabytes(needed)}, the disk of {place.absolute()} has {gigabytes(free)} free")
