"""The steps of a run in an object store. A step is whole when its checksum file is there; that file is sent last and removed first.

The layout is that of the run's folder: step_XXXXXXX/ with the same files, and next to them the run's small files, such as metrics.jsonl,
and gates/. Steps that the run went back behind are moved to aside-step_XXXXXXX/. Nothing here changes or removes them.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Collection, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Optional

from mindspeed_vita.checkpoint.gates import FOLDER as GATES
from mindspeed_vita.checkpoint.native import atomic
from mindspeed_vita.files.digest import algorithm_of, checksum_of
from mindspeed_vita.files.publish import whole_file
from mindspeed_vita.files.stores import NotThere, Store, StoreError

RUN_FILES = ("metrics.jsonl", "bad_numbers.jsonl", atomic.BEST)
"""Files of the run's folder that a resume reads, too."""
ASIDE = "aside-"
"""In front of the name of a step that the run went back behind, and of a run's file in whose place the store's came."""
_SHARDS = ("weights/", "optimizer/")


class StoredSteps:
    """The steps of one run at an address.

    Args:
        address: of the run: scheme://bucket/folder.

    Raises:
        ValueError: as Store; or the address is a pattern, which a removal would take for many runs.
    """

    def __init__(self, address: str) -> None:
        if pattern := sorted(set("*?[]") & set(address)):
            raise ValueError(f"{address} has characters of a pattern ({' '.join(pattern)}); expected the address of one run")
        self.store = Store(address)
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
        return self._marker(name) is not None

    def _marker(self, name: str) -> Optional[bytes]:
        try:
            return self.store.read(f"{name}/{atomic.CHECKSUMS}")
        except NotThere:
            return None

    def set_aside_others(self, folder: Path, *, since: int, ours: Collection[str]) -> None:
        """Moves whole steps out of this run's way that it did not write: those newer than its start, and one that has the name of `folder`.

        A step that the run's folder has, too, stays. A move that was interrupted is done again by the next call.

        Args:
            folder: the local step that is to be sent.
            since: number of the step that the run continued from.
            ours: names of steps that this start of the run has begun to send.

        Raises:
            OSError: the run's folder cannot be read.
            StoreError: as names.
        """
        for name in self.names():
            if name not in ours and (_number(name) > since or name == folder.name):
                marker, local = self._marker(name), folder.parent / name / atomic.CHECKSUMS
                if marker is not None and not (local.is_file() and local.read_bytes() == marker):
                    self._move_aside(name, marker)

    def _move_aside(self, name: str, marker: bytes) -> None:
        """The step is whole in its new place before it is touched in the old one."""
        target, number = ASIDE + name, 1
        while (there := self._marker(target)) not in (None, marker):
            number += 1
            target = f"{ASIDE}{name}.{number}"
        if there is None:
            for file in _plain(Store(self.store.at(name)).files(), self.store.at(name)):
                if file != atomic.CHECKSUMS:
                    self.store.copy(f"{name}/{file}", f"{target}/{file}")
            for gate in self._gates(name):
                self.store.copy(gate, f"{target}/{gate}")
            self.store.write(f"{target}/{atomic.CHECKSUMS}", marker)
        for gate in self._gates(name):
            self.store.remove(gate)
        self._remove(name)

    def _gates(self, name: str) -> list[str]:
        """The objects with the gates of a step."""
        return _plain(self.store.matching(f"{GATES}/*.{name}.json"), self.address)

    def _remove(self, name: str) -> None:
        """The checksum file goes first: a step that is half removed does not look whole."""
        self.store.remove(f"{name}/{atomic.CHECKSUMS}")
        self.store.remove(name)

    def begin(self, folder: Path) -> Optional[bytes]:
        """Gets ready for a step's files: what has its name in the store goes.

        Args:
            folder: the local step.

        Returns:
            The checksum file's content, for `send` and `complete`; None where the store has this very step already.

        Raises:
            OSError: the local step cannot be read.
            StoreError: as names.
        """
        content = (folder / atomic.CHECKSUMS).read_bytes()
        if self._marker(folder.name) == content:
            return None
        self._remove(folder.name)
        return content

    def send(self, folder: Path, name: str) -> None:
        """Sends one file of a step. Raises as begin."""
        self.store.send(folder / name, f"{folder.name}/{name}")

    def complete(self, folder: Path, content: bytes) -> None:
        """Sends the run's small files, the step's gates and then the checksum file: from now on the step is whole.

        Raises:
            DamagedCheckpoint: the checksum file is unreadable.
            OSError: the local step cannot be read.
            StoreError: as names, or a file of the step is missing in the store or has another size there.
        """
        self._send_run_files(folder)
        there, place = Store(self.store.at(folder.name)).files(), self.store.at(folder.name)
        sizes = {name: (folder / name).stat().st_size for name in recorded_in(content, folder)}
        wrong = [name for name, size in sizes.items() if name not in there or there[name].size != size]
        if wrong:
            found = f"{_some(wrong)} missing or of another size"
            raise StoreError(f"{place} is not whole after all files were sent: {found}; look who else writes there")
        self.store.write(f"{folder.name}/{atomic.CHECKSUMS}", content)

    def send_late_files(self, folder: Path) -> None:
        """Sends what a whole step got later, such as a gate, and the run's small files. Raises as complete.

        A step that the store does not have as it is here gets none.
        """
        content = (folder / atomic.CHECKSUMS).read_bytes()
        if self._marker(folder.name) == content:
            for name in late_files(folder, recorded_in(content, folder)):
                self.store.write(f"{folder.name}/{name}", (folder / name).read_bytes())
            self._send_run_files(folder)

    def _send_run_files(self, folder: Path) -> None:
        """All but best.json, which may name a step that is not in the store yet, and the gates of this step."""
        directory = folder.parent
        gates = [f"{GATES}/{path.name}" for path in (directory / GATES).glob(f"*.{folder.name}.json")]
        for name in [*RUN_FILES, *gates]:
            path = directory / name
            if name != atomic.BEST and path.is_file():
                self.store.write(name, path.read_bytes())

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
            self._remove(name)
        return gone

    def _settle_best(self, directory: Path) -> set[str]:
        """Steps that are spared: the run's best one, and the best one of those that the store has."""
        best, path = set(), directory / atomic.BEST
        if path.is_file():
            content = path.read_bytes()
            best.add(atomic.best_named(content, path))
            if all(self.is_whole(name) for name in best):
                self.store.write(atomic.BEST, content)
                return best
        with suppress(NotThere):
            best.add(atomic.best_named(self.store.read(atomic.BEST), self.store.at(atomic.BEST)))
        return best

    def listed(self, name: str) -> tuple[bytes, dict[str, int]]:
        """What a fetch of a whole step takes.

        Returns:
            The checksum file's content, and bytes by file: of those that it lists, and of small files that came later, such as gates.

        Raises:
            DamagedCheckpoint: the checksum file is missing or unreadable, a file that it lists is missing, or a name leads out of the step.
            StoreError: as names.
        """
        marker, place = self._marker(name), self.store.at(name)
        if marker is None:
            raise atomic.DamagedCheckpoint(f"{place} is damaged: {atomic.CHECKSUMS} is missing")
        names = recorded_in(marker, place)
        there = Store(place).files()
        missing = sorted(set(names) - there.keys())
        if missing:
            raise atomic.DamagedCheckpoint(f"{place} is damaged: {_some(missing)} missing")
        later = _plain((key for key in there if not key.startswith(_SHARDS) and key != atomic.CHECKSUMS), place)
        return marker, {key: there[key].size for key in sorted({*names, *later})}

    def fetch(self, name: str, target: Path, files: Iterable[str], marker: bytes) -> list[str]:
        """Fetches files of a step into a folder, and compares each with its checksum.

        Returns:
            One line per file that differs or is gone.

        Raises:
            DamagedCheckpoint: a name leads out of the step.
            OSError: the folder cannot be written.
            StoreError: as names.
        """
        algorithm, sums = _sums(marker)
        problems = []
        for file in _plain(files, self.store.at(name)):
            try:
                self.store.fetch(f"{name}/{file}", target / file)
            except NotThere:
                problems.append(f"{file} is missing")
                continue
            if file in sums and checksum_of(target / file, algorithm) != sums[file]:
                problems.append(f"{file} does not match its checksum")
        return problems

    def fetch_run_files(self, name: str, directory: Path) -> None:
        """Fetches the run's small files, and the gates of a step that is taken from the store.

        A local one that differs is kept as aside-NAME. Gates of other steps stay away: this run makes its own steps of their numbers.

        Raises:
            OSError: the folder cannot be written.
            StoreError: as names.
        """
        self._fetch_small((*RUN_FILES, *self._gates(name)), directory)

    def gates(self, name: str) -> dict[str, bytes]:
        """The gates of a step: their content by file name. Raises StoreError as names."""
        return {key.rpartition("/")[2]: self.store.read(key) for key in self._gates(name)}

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


def late_files(folder: Path, recorded: Collection[str]) -> list[str]:
    """Small files that a step got after it was whole. Raises OSError where the folder cannot be read."""
    return sorted(path.name for path in folder.iterdir() if path.is_file() and path.name not in (atomic.CHECKSUMS, *recorded))


def recorded_in(marker: bytes, place: Path | str) -> list[str]:
    """The files that a checksum file lists.

    Args:
        marker: its content.
        place: the step, for the message.

    Raises:
        DamagedCheckpoint: it is unreadable, or a name leads out of the step.
    """
    try:
        names = list(_sums(marker)[1])
    except (ValueError, TypeError, AttributeError, KeyError) as error:
        raise atomic.DamagedCheckpoint(f"{place} is damaged: {atomic.CHECKSUMS} cannot be read ({error})") from error
    return _plain(names, place)


def _plain(names: Iterable[str], place: Path | str) -> list[str]:
    """The names, if each stays below its step."""
    listed = list(names)
    bad = [name for name in listed if any(part in ("", ".", "..") for part in name.split("/"))]
    if bad:
        raise atomic.DamagedCheckpoint(f"{place} is damaged: it names {bad[0]!r}; expected names of files below it")
    return listed


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


def _sums(marker: bytes) -> tuple[str, dict[str, str]]:
    sums = json.loads(marker)
    algorithm = algorithm_of(sums)
    return algorithm, dict(sums[algorithm])
