"""A checkpoint in an object store as a folder of this host: fetched once into the cache, checked, and found there the next time."""

from __future__ import annotations

import hashlib
import shutil
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

from mindspeed_vita.checkpoint.gates import FOLDER as GATES
from mindspeed_vita.checkpoint.native import atomic
from mindspeed_vita.checkpoint.native.stored_steps import StoredSteps
from mindspeed_vita.files.alone import alone
from mindspeed_vita.files.digest import checksum_of
from mindspeed_vita.files.publish import publish_folder, whole_file
from mindspeed_vita.files.space import check_space, gigabytes
from mindspeed_vita.files.store_cache import patiently, several
from mindspeed_vita.files.stores import Store, Stored, cache_folder
from mindspeed_vita.files.writing import write_bytes

_EXPORTS = ("config.json", "adapter_config.json")
"""A folder with one of them is an export, or adapters of peft."""


_OF_STORE = "in-store-"
"""What the file of a fetched gate begins with; no gate has such a name. One that is measured on the copy has a file of its own."""


def pinned(address: str) -> str:
    """The address of one step, or of an export, that a checkpoint's address means now: of a run, its newest whole step.

    Raises:
        ValueError: no checkpoint there.
        StoreError: the store cannot be reached, or refuses.
    """
    store = Store(address)
    names = store.children()
    is_step = atomic.is_step(Path(store.address.rpartition("/")[2]))
    if any(name in names for name in _EXPORTS) or (atomic.CHECKSUMS in names and is_step):
        return store.address
    if atomic.CHECKSUMS in names:
        raise ValueError(f"{address} is a step under another name; expected step_N: copy it to that name, in a run of its own")
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
        marker, sizes = StoredSteps(run).listed(name)
        target = _place(Store(run)) / _short(marker) / name
        known = atomic.CHECKSUMS
    else:
        files, marker = store.files(), b""
        sizes = {key: found.size for key, found in files.items()}
        target = _place(store) / _short(repr(sorted((key, found.stamp) for key, found in files.items())).encode()) / name
        known = next(name for name in _EXPORTS if name in files)
    with alone(target.with_name(f".{target.name}.lock")):
        if known == atomic.CHECKSUMS:  # each time: gates come late, and lie beside the step
            _mirror_gates(patiently(lambda: StoredSteps(run).gates(name)), name, target.parent / GATES)
        if (target / known).is_file():
            return target
        temporary = target.with_name(f"{atomic.FETCHING}{name}")
        temporary.mkdir(parents=True, exist_ok=True)
        missing = _begun(temporary, sizes, marker)
        print(f"vita: fetching {place} ({gigabytes(sum(missing.values()))}) into {target}", file=sys.stderr, flush=True)
        check_space(target, sum(missing.values()), advice="free space there, or set XDG_CACHE_HOME to a folder on a larger disk")
        if known == atomic.CHECKSUMS:
            problems = fetch_files(StoredSteps(run), name, missing, marker, temporary)
            if problems:
                shutil.rmtree(temporary)
                raise atomic.DamagedCheckpoint(f"{place} is damaged: {'; '.join(problems)}")
            write_bytes(temporary / atomic.CHECKSUMS, marker)
        else:
            several(lambda file: patiently(lambda: _fetch(store, file, files[file], temporary)), list(missing))
        publish_folder(temporary, target, known_by=known, replace=False)
        shutil.rmtree(temporary, ignore_errors=True)
    return target


def _mirror_gates(found: Mapping[str, bytes], name: str, folder: Path) -> None:
    """Puts a stored step's gates beside those that were measured on the copy: both count. What the store has no more goes.

    Args:
        found: content by file name.
        name: of the step.
        folder: of the copy's gates.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for path in folder.glob(f"{_OF_STORE}*.{name}.json"):
        if path.name.removeprefix(_OF_STORE) not in found:
            path.unlink()
    for file, content in found.items():
        with whole_file(folder / f"{_OF_STORE}{file}") as temporary:
            temporary.write_bytes(content)


def _begun(temporary: Path, sizes: Mapping[str, int], marker: bytes) -> dict[str, int]:
    """Keeps the whole files that an earlier start fetched, removes all else; returns bytes of what is missing."""
    algorithm, sums = atomic.read_sums(marker) if marker else ("", {})
    for path in [path for path in temporary.rglob("*") if path.is_file()]:
        name = path.relative_to(temporary).as_posix()
        whole = name in sizes and path.stat().st_size == sizes[name]
        if not whole or (marker and checksum_of(path, algorithm) != sums[name]):
            path.unlink()
    return {name: size for name, size in sizes.items() if not (temporary / name).is_file()}


def _fetch(store: Store, name: str, expected: Stored, target: Path) -> None:
    if store.fetch(name, target / name) != expected:
        (target / name).unlink()
        raise ValueError(f"{store.at(name)} changed while its folder was fetched; start again when nothing writes there")


def fetch_files(steps: StoredSteps, name: str, files: Iterable[str], marker: bytes, target: Path) -> list[str]:
    """As StoredSteps.fetch, but several files at a time, and where the store does not answer it is asked again."""
    found = several(lambda file: patiently(lambda: steps.fetch(name, target, [file], marker)), list(files))
    return [problem for problems in found for problem in problems]


def _place(store: Store) -> Path:
    return cache_folder() / "checkpoints" / store.scheme / store.path.strip("/")


def _short(content: bytes) -> str:
    """Tells contents apart in a path."""
    return hashlib.sha256(content).hexdigest()[:12]
