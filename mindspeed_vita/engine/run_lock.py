"""The lock of a run's folder, which the first rank holds for all ranks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mindspeed_vita.checkpoint.folder_lock import RUN_LOCK, FolderLock
from mindspeed_vita.checkpoint.native.ranks import on_first_rank
from mindspeed_vita.config import Recipe
from mindspeed_vita.data import pack_share


def run_lock(recipe: Recipe) -> FolderLock:
    """The lock, which nobody holds yet. So its `release` can be named before it is taken."""
    directory = Path(recipe.checkpoint.directory)
    advice = "choose another checkpoint.directory, or wait"
    return FolderLock(directory / RUN_LOCK, folder=directory, work=f"vita train ({recipe.name})", advice=advice, patient=True)


@contextmanager
def held_by_first_rank(lock: FolderLock) -> Iterator[None]:
    """Holds a lock for the block. Collective.

    Raises:
        ValueError: another process holds it; on every rank.
    """
    try:
        on_first_rank(lock.acquire)
        yield
    finally:
        lock.release()  # does nothing on the other ranks


def put_in_order(lock: FolderLock) -> None:
    """What a process does that ends while its main thread may wait for ever: no shared packs and no lock stay behind."""
    pack_share.remove_all()
    lock.release()
