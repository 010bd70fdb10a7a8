"""The steps of a run in an object store. A step is whole when its checksum file is there; that file is sent last and removed first.

The layout is that of the run's folder: step_XXXXXXX/ with the same files, and next to them the run's small files, such as metrics.jsonl,
and gates/. Steps that the run went back behind lie in aside-step_XXXXXXX/ (stored_aside.py). Nothing here changes or removes them.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path
from typing import Optional

from mindspeed_vita.checkpoint.gates import FOLDER as GATES
from mindspeed_vita.checkpoint.native import atomic
from mindspeed_vita.files.digest import checksum_of
from mindspeed_vita.files.publish import whole_file
from mindspeed_vita.files.stores import NotThere, Store, StoreError, check_name

RUN_FILES = ("metrics.jsonl", "bad_numbers.jsonl", atomic.BEST)
"""Files of the run's folder that a resume reads, too."""
ASIDE = "aside-"
"""In front of the name of a step that the run went back behind, and of a run's file in whose place the store's came."""
BEGUN = "begun.json"
"""File of a step that is on its way to its place: the checksum file that it will have. It goes when that one is there."""
_SHARDS = ("weights/", "optimizer/")


class StoredSteps:
    """The steps of one run at an address.

    Args:
        address: of the run: scheme://bucket/folder.
        moved: called after each object that was sent, copied or removed.

    Raises:
        ValueError: as Store; or the address is a pattern, which a removal would take for many runs.
    """

    def __init__(self, address: str, moved: Callable[[], None] = atomic.nothing) -> None:
        if pattern := sorted(set("*?[]") & set(address)):
            raise ValueError(f"{address} has characters of a pattern ({' '.join(pattern)}); expected the address of one run")
        self.store, self.moved = Store(address), moved
        self.address = self.store.address

    def names(self) -> list[str]:
        """All steps, whole or not, oldest first.

        Raises:
            StoreError: the store cannot be reached, or refuses.
        """
        return sorted((name for name in self.store.children() if atomic.is_step(Path(name))), key=_number)

    def newest_first(self) -> Iterator[tuple[str, bool]]:
        """Every step, and whether it is whole. Raises as names."""
        for name in reversed(self.names()):
            yield name, self.is_whole(name)

    def newest(self) -> Optional[str]:
        """The newest whole step. Raises as names."""
        return next((name for name, whole in self.newest_first() if whole), None)

    def is_whole(self, name: str) -> bool:
        """Whether a step's checksum file is there. Raises as names."""
        return self.marker(name) is not None

    def marker(self, name: str) -> Optional[bytes]:
        """The checksum file of a step; None where it is not there. Raises as names."""
        return self.read(f"{name}/{atomic.CHECKSUMS}")

    def read(self, name: str) -> Optional[bytes]:
        """A small object of the run; None where it is not there. Raises as names."""
        try:
            return self.store.read(name)
        except NotThere:
            return None

    def write(self, name: str, content: bytes) -> None:
        """Writes a small object of the run, and looks whether it is there in its full size.

        Raises:
            StoreError: as names, or the object has another size. Then it is removed.
        """
        self.store.write(name, content)
        found = self.store.about(name)
        if found is None or found.size != len(content):
            self.store.remove(name)
            raise StoreError(f"{self.store.at(name)} has not the {len(content)} bytes that were written; look whether the store loses data")

    def gate_objects(self, name: str) -> list[str]:
        """The names of the objects with the gates of a step. Raises as names."""
        return list(self.store.matching(f"{GATES}/*.{name}.json"))

    def remove(self, name: str) -> None:
        """Removes a step, its checksum file first: a step that is half removed does not look whole. Raises as names."""
        self.store.remove(f"{name}/{atomic.CHECKSUMS}")
        self.store.remove(name)
        self.moved()

    def begin(self, folder: Path) -> Optional[tuple[bytes, list[str]]]:
        """Gets ready for a step's files. What has its name in the store goes, unless it is the beginning of this very step.

        Args:
            folder: the local step.

        Returns:
            The checksum file's content, for `complete`, and the files that an interrupted sending brought into the store already; None
            where the store has this very step.

        Raises:
            DamagedCheckpoint: the checksum file is unreadable.
            OSError: the local step cannot be read.
            StoreError: as names.
        """
        content = (folder / atomic.CHECKSUMS).read_bytes()
        if self.marker(folder.name) == content:
            self.store.remove(f"{folder.name}/{BEGUN}")
            return None
        if self.read(f"{folder.name}/{BEGUN}") == content:
            return content, sorted({*recorded_in(content, folder)} - {*self._lacking(folder, content)})
        self.remove(folder.name)
        self.write(f"{folder.name}/{BEGUN}", content)
        return content, []

    def send(self, folder: Path, name: str) -> None:
        """Sends one file of a step. Raises as begin."""
        self.store.send(folder / name, f"{folder.name}/{name}")
        self.moved()

    def _lacking(self, folder: Path, content: bytes) -> list[str]:
        """The files of a local step that are missing in the store, or have another size there."""
        there = Store(self.store.at(folder.name)).files()
        sizes = {name: (folder / name).stat().st_size for name in recorded_in(content, folder)}
        return [name for name, size in sizes.items() if name not in there or there[name].size != size]

    def complete(self, folder: Path, content: bytes) -> None:
        """Sends the run's small files, the step's gates and then the checksum file: from now on the step is whole.

        Raises:
            DamagedCheckpoint: the checksum file is unreadable.
            OSError: the local step cannot be read.
            StoreError: as names, or a file of the step is missing in the store or has another size there.
        """
        self._send_run_files(folder)
        wrong = self._lacking(folder, content)
        if wrong:
            found = f"{_some(wrong)} missing or of another size"
            raise StoreError(
                f"{self.store.at(folder.name)} is not whole after all files were sent: {found}; look who else writes there, or whether the "
                "store loses data"
            )
        self.write(f"{folder.name}/{atomic.CHECKSUMS}", content)
        self.store.remove(f"{folder.name}/{BEGUN}")

    def send_run_files(self, folder: Path) -> None:
        """Sends the run's small files, and the gates of a step that the store has as it is here. Raises as begin."""
        if self.marker(folder.name) == (folder / atomic.CHECKSUMS).read_bytes():
            self._send_run_files(folder)

    def _send_run_files(self, folder: Path) -> None:
        """All but best.json, which may name a step that is not in the store yet, and the gates of this step."""
        directory = folder.parent
        gates = [f"{GATES}/{path.name}" for path in (directory / GATES).glob(f"*.{folder.name}.json")]
        for name in [*RUN_FILES, *gates]:
            path = directory / name
            if name != atomic.BEST and path.is_file():
                self.write(name, path.read_bytes())

    def prune(self, directory: Path, keep: int) -> list[str]:
        """Sends best.json if the step that it names is whole in the store. Then removes old steps.

        What stays: the `keep` newest whole ones (0 keeps all), the best one, and half ones that are newer.
        Until a new best step is whole in the store, the one that the store's best.json names stays.

        Args:
            directory: the run's folder.
            keep: as checkpoint.keep.

        Returns:
            the names of what went.

        Raises:
            OSError: the run's folder cannot be read.
            StoreError: as names.
            ValueError: best.json, here or in the store, names no step.
        """
        best = self._settle_best(directory)
        if keep < 1:
            return []
        found = list(self.newest_first())
        kept = [name for name, whole in found if whole][:keep]
        gone = [name for name, _ in found if kept and _number(name) < _number(kept[-1]) and name not in best]
        for name in gone:
            self.remove(name)
        return gone

    def _settle_best(self, directory: Path) -> set[str]:
        """Steps that are spared: the run's best one, and until it is whole in the store those that were the best ones before."""
        best: set[str] = set()
        path = directory / atomic.BEST
        if path.is_file():
            content = path.read_bytes()
            first, *before = atomic.bests_named(content, path)
            if self.is_whole(first):
                self.write(atomic.BEST, content)
                return {first}
            best = {first, *[name for name in before if self.is_whole(name)][:1]}
        stored = self.read(atomic.BEST)
        return best if stored is None else {*best, atomic.bests_named(stored, self.store.at(atomic.BEST))[0]}

    def listed(self, name: str) -> tuple[bytes, dict[str, int]]:
        """What a fetch of a whole step takes: the files that its checksum file lists. Nothing else has a place in a step.

        Returns:
            The checksum file's content, and bytes by file.

        Raises:
            DamagedCheckpoint: the checksum file is missing or unreadable, a file that it lists is missing, or a name leads out of the step.
            StoreError: as names.
        """
        marker, place = self.marker(name), self.store.at(name)
        if marker is None:
            raise atomic.DamagedCheckpoint(f"{place} is damaged: {atomic.CHECKSUMS} is missing")
        names = sorted(recorded_in(marker, place))
        there = Store(place).files()
        missing = [file for file in names if file not in there]
        if missing:
            raise atomic.DamagedCheckpoint(f"{place} is damaged: {_some(missing)} missing")
        return marker, {file: there[file].size for file in names}

    def fetch(self, name: str, target: Path, files: Iterable[str], marker: bytes) -> list[str]:
        """Fetches files of a step into a folder, and compares each with its checksum.

        Returns:
            One line per file that differs or is gone.

        Raises:
            OSError: the folder cannot be written.
            StoreError: as names.
            ValueError: a name leads out of the step.
        """
        algorithm, sums = atomic.read_sums(marker)
        problems = []
        for file in files:
            try:
                self.store.fetch(f"{name}/{file}", target / check_name(file, self.store.at(name)))
            except NotThere:
                problems.append(f"{file} is missing")
                continue
            if checksum_of(target / file, algorithm) != sums[file]:
                problems.append(f"{file} does not match its checksum")
        return problems

    def fetch_run_files(self, name: str, directory: Path) -> None:
        """Fetches the run's small files, and the gates of a step that is taken from the store.

        A local one that differs is kept as aside-NAME. Gates of other steps stay away: this run makes its own steps of their numbers.

        Raises:
            OSError: the folder cannot be written.
            StoreError: as names.
        """
        self._fetch_small((*RUN_FILES, *self.gate_objects(name)), directory)

    def gates(self, name: str) -> dict[str, bytes]:
        """The gates of a step: their content by file name. Raises StoreError as names."""
        return {key.rpartition("/")[2]: self.store.read(key) for key in self.gate_objects(name)}

    def _fetch_small(self, names: Iterable[str], directory: Path) -> None:
        for name in names:
            try:
                content = self.store.read(name)
            except NotThere:
                continue
            path, aside = directory / name, directory / f"{ASIDE}{name}"
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.is_file() and path.read_bytes() != content:
                aside.parent.mkdir(exist_ok=True)
                shutil.copy2(path, _free(aside))
            with whole_file(path) as temporary:
                temporary.write_bytes(content)


def files_of_rank(names: Collection[str], rank: int, world: int) -> list[str]:
    """The files of a step that a rank sends: those it wrote. Small ones are the first rank's, and those of missing ranks are dealt out."""
    return sorted(name for name in names if _writer(name) % world == rank)


def _writer(name: str) -> int:
    digits = name.removesuffix(".safetensors").rpartition("rank_")[2]
    return int(digits) if name.startswith(_SHARDS) and digits.isdigit() else 0


def recorded_in(marker: bytes, place: Path | str) -> list[str]:
    """The files that a checksum file lists.

    Args:
        marker: its content.
        place: the step, for the message.

    Raises:
        DamagedCheckpoint: it is unreadable, or a name leads out of the step.
    """
    try:
        return [check_name(name, str(place)) for name in atomic.read_sums(marker)[1]]
    except ValueError as error:
        raise atomic.DamagedCheckpoint(f"{place} is damaged: {atomic.CHECKSUMS} cannot be taken ({error})") from error


def _free(path: Path) -> Path:
    """The path, or the first of path.2, path.3, ... that nothing has."""
    free, number = path, 1
    while free.exists():
        number += 1
        free = path.with_name(f"{path.name}.{number}")
    return free


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _number(name: str) -> int:
    return atomic.step_of(Path(name))
