"""The lock of a run's folder, held for all ranks of a training."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mindspeed_vita.checkpoint.folder_lock import RUN_LOCK, FolderLock
from mindspeed_vita.checkpoint.native.ranks import on_first_rank


@contextmanager
def locked_run(directory: Path, name: str) -> Iterator[FolderLock]:
    """The lock of the run's folder, which rank 0 holds for all ranks."""
    advice = "choose another checkpoint.directory, or wait"
    lock = FolderLock(directory / RUN_LOCK, folder=directory, work=f"vita train ({name})", advice=advice)
    try:
        on_first_rank(lock.acquire)
        yield lock
    finally:
        lock.release()  # does nothing on the other ranks
