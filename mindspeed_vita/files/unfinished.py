"""The temporary folder of a long write: begun, kept where it was stopped so that the same write goes on, removed where it is of no use."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Optional, Protocol

from mindspeed_vita.files.publish import Published
from mindspeed_vita.files.shard_stream import Journal
from mindspeed_vita.files.space import check_space


class Planned(Protocol):
    """A file that is going to be written."""

    @property
    def name(self) -> str:
        """Relative to the folder."""

    @property
    def nbytes(self) -> int:
        """Its size."""

    @property
    def fingerprint(self) -> str:
        """Differs where the content is laid out differently."""


def state_of(files: Iterable[Path]) -> list[list[Any]]:
    """What tells whether files were changed: path, size and time of each."""
    return [[str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns] for path in files]


@contextmanager
def unfinished(
    folder: Path, files: Sequence[Planned], *, origin: Optional[Mapping[str, Any]], must_go_on: bool = False, advice: str
) -> Iterator[Journal]:
    """Makes the folder, or takes up the one that an earlier try with the same origin and plan left behind.

    The block writes the folder and gives it its final name. Then its journal goes. A process that is killed at any point leaves the folder
    under its final name, or one that the same work goes on in. An OSError or a stop inside the block keeps the folder, too. Anything else
    removes it.

    Args:
        folder: the temporary folder; one process at a time uses it.
        files: the plan.
        origin: what the tensors come from, as JSON; None where that cannot be told. Then nothing is kept.
        must_go_on: refuse to begin anew.
        advice: what to do where the disk is too small.

    Raises:
        ValueError: the disk is too small, or there is nothing to go on with although there must be.
        Published: the folder has its name, but the journal cannot be removed.
    """
    plan = [[file.name, file.fingerprint] for file in files]
    journal = Journal(folder, {"origin": origin, "files": plan})
    if origin is None or not journal.fits:
        if must_go_on:
            found = "what is there is of another source or other settings" if folder.exists() else "there is none"
            raise ValueError(f"--resume needs the beginning of this conversion in {folder}; {found}: leave --resume out to begin anew")
        _remove(folder, journal)
        journal = Journal(folder, journal.identity)
    else:
        # what was not finished is written anew: its room is free, and nothing of another try comes along
        for path in [path for path in folder.rglob("*") if path.is_file() and path.relative_to(folder).as_posix() not in journal.done]:
            path.unlink()
    check_space(folder, sum(file.nbytes for file in files if file.name not in journal.done), advice=advice)
    try:
        for file in files:
            (folder / file.name).parent.mkdir(parents=True, exist_ok=True)
        journal.begin()
        yield journal
    except BaseException as error:
        if origin is None or isinstance(error, Published) or not isinstance(error, (OSError, KeyboardInterrupt)):
            _remove(folder, journal)
        raise
    try:
        journal.path.unlink()
    except OSError as error:
        raise Published(f"all is written, but {journal.path} cannot be removed: {error}; remove it") from error


def _remove(folder: Path, journal: Journal) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    journal.path.unlink(missing_ok=True)
