"""A checkpoint in an object store as a folder of this host: fetched once into the cache, checked, and found there the next time."""

from __future__ import annotations

import fcntl
import hashlib
import json
import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from mindspeed_vita.checkpoint.native import atomic
from mindspeed_vita.checkpoint.native.stored_steps import StoredSteps
from mindspeed_vita.files.digest import algorithm_of
from mindspeed_vita.files.publish import publish_folder
from mindspeed_vita.files.space import check_space, gigabytes
from mindspeed_vita.files.stores import Store, Stored, cache_folder, check_name
from mindspeed_vita.files.writing import write_bytes

_EXPORTS = ("config.json", "adapter_config.json")
"""A folder with one of them is an export, or adapters of peft."""


def pinned(address: str) -> str:
    """The address of one step, or of an export, that a checkpoint's address means now: of a run, its newest whole step.

    Raises:
        ValueError: no checkpoint there.
        StoreError: the store cannot be reached, or refuses.
    """
    store = Store(address)
    names = store.children()
    if atomic.CHECKSUMS in names or any(name in names for name in _EXPORTS):
        return store.address
    newest = StoredSteps(address).newest()
    if newest is None:
        half = [name for name in names if atomic.is_step(Path(name))]
        found = f"its steps are not whole ({', '.join(half)})" if half else f"found {', '.join(names[:5]) or 'nothing'}"
        raise ValueError(f"{address} is no checkpoint: {found}; expected a run with whole steps, one of its steps, or an export")
    return store.at(newest)


def local_copy(address: str) -> Path:
    """The folder of this host with a checkpoint of a store. Processes of a host that ask for the same one wait for the first.

    Args:
        address: of a run (its newest whole step is taken), a step, or a Hugging Face folder.

    Raises:
        ValueError: no checkpoint there, a file differs from its checksum, or the disk is too small.
        StoreError: the store cannot be reached, or refuses.
    """
    place = pinned(address)
    run, _, name = place.rpartition("/")
    store = Store(place)
    if atomic.is_step(Path(name)):
        marker, sizes = checked_files(StoredSteps(run), name)
        target = _place(Store(run)) / _short(marker) / name
        known, size = atomic.CHECKSUMS, sum(sizes.values())
    else:
        files = store.files()
        target = _place(store) / _short(repr(sorted((key, found.stamp) for key, found in files.items())).encode()) / name
        known, size = next(name for name in _EXPORTS if name in files), sum(found.size for found in files.values())
    with _alone(target):
        if (target / known).is_file():
            return target
        print(f"vita: fetching {place} ({gigabytes(size)}) into {target}", file=sys.stderr, flush=True)
        check_space(target, size, advice="free space there, or set XDG_CACHE_HOME to a folder on a larger disk")
        temporary = target.with_name(f"{atomic.FETCHING}{name}")
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        try:
            if known == atomic.CHECKSUMS:
                _fetch_step(StoredSteps(run), name, sizes, marker, temporary)
            else:
                _fetch_all(store, files, temporary)
            publish_folder(temporary, target, known_by=known, replace=False)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    return target


def checked_files(steps: StoredSteps, name: str) -> tuple[bytes, dict[str, int]]:
    """What is fetched of a whole step: the files with a checksum. Nothing else has a place in a step, as its gates lie beside it.

    Returns:
        The checksum file's content, and bytes by file.

    Raises:
        ValueError: a name leads out of the step.
        DamagedCheckpoint, StoreError: as StoredSteps.listed.
    """
    marker, sizes = steps.listed(name)
    sums = json.loads(marker)
    return marker, {check_name(file, steps.store.at(name)): sizes[file] for file in sorted(sums[algorithm_of(sums)])}


def _fetch_step(steps: StoredSteps, name: str, files: Iterable[str], marker: bytes, target: Path) -> None:
    problems = steps.fetch(name, target, files, marker)
    if problems:
        raise atomic.DamagedCheckpoint(f"{steps.store.at(name)} is damaged: {'; '.join(problems)}")
    write_bytes(target / atomic.CHECKSUMS, marker)


def _fetch_all(store: Store, files: Mapping[str, Stored], target: Path) -> None:
    for name, found in files.items():
        if store.fetch(name, target / name) != found:
            raise ValueError(f"{store.at(name)} changed while its folder was fetched; start again when nothing writes there")


def _place(store: Store) -> Path:
    return cache_folder() / "checkpoints" / store.scheme / store.path.strip("/")


def _short(content: bytes) -> str:
    """Tells contents apart in a path."""
    return hashlib.sha256(content).hexdigest()[:12]


@contextmanager
def _alone(target: Path) -> Iterator[None]:
    """Waits until no other process of this host fetches the same."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.with_name(f".{target.name}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
