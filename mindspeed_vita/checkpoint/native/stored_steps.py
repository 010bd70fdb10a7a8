"""The steps of a run in an object store. A step is whole when its checksum file is there; that file is sent last and removed first.

The layout is that of the run's folder: step_XXXXXXX/ with the same files, and next to them the run's small files, such as metrics.jsonl.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import Optional

from mindspeed_vita.checkpoint.native import atomic
from mindspeed_vita.files.digest import algorithm_of, checksum_of
from mindspeed_vita.files.stores import NotThere, Store
from mindspeed_vita.files.writing import write_bytes

RUN_FILES = ("metrics.jsonl", "bad_numbers.jsonl", atomic.BEST)
"""Files of the run's folder that a resume reads, too."""
ASIDE = f"aside-{atomic.CHECKSUMS}"
"""Name of the checksum file of a step that the run went back behind: it is not taken any more, and nothing of it is lost."""
_SHARDS = ("weights/", "optimizer/")


class StoredSteps:
    """The steps of one run at an address.

    Args:
        address: of the run: scheme://bucket/folder.

    Raises:
        ValueError: as Store.
    """

    def __init__(self, address: str) -> None:
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

    def begin(self, folder: Path, *, newest: str) -> Optional[bytes]:
        """Gets ready for a step's files: what has its name in the store counts as whole no more. Steps newer than the run's are set aside.

        Args:
            folder: the local step.
            newest: name of the run's newest step.

        Returns:
            The checksum file's content, for `complete`; None where the store has this very step already.

        Raises:
            OSError: the local step cannot be read.
            StoreError: as names.
        """
        content = (folder / atomic.CHECKSUMS).read_bytes()
        for name in [name for name in self.names() if _number(name) > _number(newest)]:
            self.set_aside(name)
        there = self._marker(folder.name)
        if there == content:
            return None
        if there is not None:
            self.store.remove(f"{folder.name}/{atomic.CHECKSUMS}")
        return content

    def set_aside(self, name: str) -> None:
        """Makes a step one that no run takes up, by another name of its checksum file. Raises as names."""
        content = self._marker(name)
        if content is not None:
            self.store.write(f"{name}/{ASIDE}", content)
            self.store.remove(f"{name}/{atomic.CHECKSUMS}")

    def send(self, folder: Path, name: str) -> None:
        """Sends one file of a step. Raises as begin."""
        self.store.send(folder / name, f"{folder.name}/{name}")

    def complete(self, folder: Path, content: bytes) -> None:
        """Sends the run's small files and then the checksum file: from now on the step is whole. Raises as begin."""
        self._send_run_files(folder.parent)
        self.store.remove(f"{folder.name}/{ASIDE}")
        self.store.write(f"{folder.name}/{atomic.CHECKSUMS}", content)

    def send_late_files(self, folder: Path) -> None:
        """Sends small files that a whole step got later, such as a gate, and the run's small files. Raises as begin."""
        recorded = atomic.recorded(folder)
        for path in [path for path in folder.iterdir() if path.is_file() and path.name not in (atomic.CHECKSUMS, *recorded)]:
            self.store.write(f"{folder.name}/{path.name}", path.read_bytes())
        self._send_run_files(folder.parent)

    def _send_run_files(self, directory: Path) -> None:
        for name in RUN_FILES:
            path = directory / name
            if path.is_file():
                self.store.write(name, path.read_bytes())

    def prune(self, keep: int, best: str = "") -> list[str]:
        """Removes all but the `keep` newest whole steps (0 keeps all) and the best one, and what is older and not whole.

        Steps that were set aside stay. A step's checksum file goes first, so that none which is half removed looks whole.

        Returns:
            the names of what went.

        Raises:
            StoreError: as names.
        """
        if keep < 1:
            return []
        found = list(self.newest_first())
        kept = [name for name, whole in found if whole][:keep]
        if not kept:
            return []
        old = [name for name, _ in found if _number(name) < _number(kept[-1]) and name != best]
        gone = [name for name in old if not self.store.is_object(f"{name}/{ASIDE}")]
        for name in gone:
            self.store.remove(f"{name}/{atomic.CHECKSUMS}")
            self.store.remove(name)
        return gone

    def listed(self, name: str) -> tuple[bytes, dict[str, int]]:
        """What a fetch of a whole step takes.

        Returns:
            The checksum file's content, and bytes by file: of those that it lists, and of small files that came later, such as gates.

        Raises:
            DamagedCheckpoint: the checksum file is missing or unreadable, or a file that it lists is missing.
            StoreError: as names.
        """
        marker = self._marker(name)
        try:
            if marker is None:
                raise ValueError("it is missing")
            sums = _sums(marker)[1]
        except (ValueError, TypeError, AttributeError) as error:
            found = f"{atomic.CHECKSUMS} cannot be read ({error})"
            raise atomic.DamagedCheckpoint(f"{self.store.at(name)} is damaged: {found}") from error
        there = Store(self.store.at(name)).files()
        missing = sorted(sums.keys() - there.keys())
        if missing:
            found = ", ".join(missing[:3]) + (f" and {len(missing) - 3} more" if len(missing) > 3 else "")
            raise atomic.DamagedCheckpoint(f"{self.store.at(name)} is damaged: {found} missing")
        later = {key for key in there if not key.startswith(_SHARDS) and key not in (atomic.CHECKSUMS, ASIDE)}
        return marker, {key: there[key].size for key in sorted(sums.keys() | later)}

    def fetch(self, name: str, target: Path, files: Iterable[str], marker: bytes) -> list[str]:
        """Fetches files of a step into a folder, and compares each with its checksum.

        Returns:
            One line per file that differs or is gone.

        Raises:
            OSError: the folder cannot be written.
            StoreError: as names.
        """
        algorithm, sums = _sums(marker)
        problems = []
        for file in files:
            try:
                self.store.fetch(f"{name}/{file}", target / file)
            except NotThere:
                problems.append(f"{file} is missing")
                continue
            if file in sums and checksum_of(target / file, algorithm) != sums[file]:
                problems.append(f"{file} does not match its checksum")
        return problems

    def fetch_run_files(self, directory: Path) -> None:
        """Fetches the run's small files that its folder lacks. Raises as fetch."""
        for name in RUN_FILES:
            if not (directory / name).exists() and self.store.is_object(name):
                self.store.fetch(name, directory / name)

    def fetch_whole(self, name: str, target: Path) -> None:
        """Fetches a step into a new folder, checked; its checksum file comes last.

        Raises:
            DamagedCheckpoint: a file is missing or differs.
            OSError, StoreError: as fetch.
        """
        marker, sizes = self.listed(name)
        problems = self.fetch(name, target, sizes, marker)
        if problems:
            raise atomic.DamagedCheckpoint(f"{self.store.at(name)} is damaged: {'; '.join(problems)}")
        write_bytes(target / atomic.CHECKSUMS, marker)


def files_of_rank(names: Collection[str], rank: int, world: int) -> list[str]:
    """The files of a step that a rank sends: those it wrote. Small ones are the first rank's, and those of missing ranks are dealt out."""
    return sorted(name for name in names if _writer(name) % world == rank)


def _writer(name: str) -> int:
    digits = name.removesuffix(".safetensors").rpartition("rank_")[2]
    return int(digits) if name.startswith(_SHARDS) and digits.isdigit() else 0


def _number(name: str) -> int:
    return atomic.step_of(Path(name))


def _sums(marker: bytes) -> tuple[str, dict[str, str]]:
    sums = json.loads(marker)
    algorithm = algorithm_of(sums)
    return algorithm, dict(sums[algorithm])
