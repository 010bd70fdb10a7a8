"""Writes groups of tensors to safetensors files as a stream: one group in memory at a time, hashed while it is written.

A journal next to the folder names every file that is whole, with its checksum. A stream that was stopped goes on behind the last of them.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mindspeed_vita.files.digest import CHECKSUM, checksum
from mindspeed_vita.files.publish import sync
from mindspeed_vita.files.read_ahead import read_ahead
from mindspeed_vita.files.safetensors_file import encode_header, tensor_bytes
from mindspeed_vita.files.tensors import Group, Spec
from mindspeed_vita.files.writing import naming

JOURNAL = ".journal"
"""Behind the name of a temporary folder: its journal, which lies next to it, so that the folder can get its final name as it is."""
_BLOCK = 1 << 23
"""Bytes that are written while the hash of the same bytes is computed."""

Report = Callable[[int], None]
"""Told how many bytes were written since the last call."""


@dataclass(frozen=True)
class ShardFile:
    """A file of the plan."""

    name: str
    """Relative to the folder."""
    tensors: Mapping[str, Spec]
    """In the order of the data."""
    metadata: Mapping[str, str]
    """The header's free entries."""

    @property
    def header(self) -> bytes:
        """All that comes before the tensors."""
        return encode_header([(name, spec.dtype, spec.shape) for name, spec in self.tensors.items()], self.metadata)

    @property
    def fingerprint(self) -> str:
        """Differs where the content is laid out differently."""
        return hashlib.sha256(self.header).hexdigest()

    @property
    def nbytes(self) -> int:
        """Size of the file."""
        return len(self.header) + sum(spec.nbytes for spec in self.tensors.values())


def cut(specs: Mapping[str, Spec], max_bytes: int) -> list[dict[str, Spec]]:
    """Tensors in order, a new part before one would grow beyond `max_bytes`. A single tensor may exceed it.

    Args:
        specs: of all tensors.
        max_bytes: of a part's tensors.
    """
    parts: list[dict[str, Spec]] = [{}]
    size = 0
    for name, spec in specs.items():
        if parts[-1] and size + spec.nbytes > max_bytes:
            parts.append({})
            size = 0
        parts[-1][name] = spec
        size += spec.nbytes
    return parts


class Journal:
    """Which files of a folder are whole. Its first line says what is written; a journal of something else counts as none.

    Args:
        folder: the temporary folder.
        identity: everything that the bytes depend on: source, format, type, cut.
    """

    def __init__(self, folder: Path, identity: Mapping[str, Any]) -> None:
        self._folder, self.identity = folder, identity
        self.path = folder.with_name(folder.name + JOURNAL)
        self._first = json.dumps({"identity": identity}, sort_keys=True) + "\n"
        self.done: dict[str, str] = {}
        """Relative name to checksum."""
        lines = self.path.read_text(encoding="utf-8").splitlines(keepends=True) if self.path.is_file() else []
        self.fits = folder.is_dir() and bool(lines) and lines[0] == self._first
        """Whether the folder holds a beginning of the same work."""
        self._length = len(self._first.encode())
        """Bytes of the lines that are whole."""
        for line in lines[1:] if self.fits else ():
            if not line.endswith("\n"):
                break  # cut off
            try:
                entry = json.loads(line)
                file, size, digest = str(entry["file"]), int(entry["bytes"]), str(entry[CHECKSUM])
            except (ValueError, KeyError, TypeError):
                break
            self._length += len(line.encode())
            if (folder / file).is_file() and (folder / file).stat().st_size == size:
                self.done[file] = digest

    def begin(self) -> None:
        """Writes the first line, where the journal is new, and drops a line that was cut off. Loses no whole line wherever it is killed."""
        if self.fits:
            os.truncate(self.path, self._length)
        else:
            self.path.write_text(self._first, encoding="utf-8")

    def add(self, file: str, digest: str) -> None:
        """Notes that a file is whole. It must be synced already."""
        self.done[file] = digest
        line = json.dumps({"file": file, "bytes": (self._folder / file).stat().st_size, CHECKSUM: digest})
        with self.path.open("a", encoding="utf-8") as journal:
            journal.write(line + "\n")
            journal.flush()
            os.fsync(journal.fileno())


class Finishing:
    """Syncs written files in a thread and notes them in the journal, while the next file is written. Its end waits for all.

    Args:
        folder: of the files.
        journal: of the folder.
    """

    def __init__(self, folder: Path, journal: Journal) -> None:
        self._folder, self._journal = folder, journal
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="vita-sync")
        self._begun: list[Future[None]] = []

    def add(self, name: str, digest: str) -> None:
        """A file was written to its end.

        Raises:
            OSError: an earlier file could not be synced; names it.
        """
        self._begun.append(self._thread.submit(self._finish, name, digest))
        for earlier in self._begun:
            if earlier.done():
                earlier.result()

    def _finish(self, name: str, digest: str) -> None:
        with naming(self._folder / name):
            sync(self._folder / name)
            self._journal.add(name, digest)

    def __enter__(self) -> Finishing:
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        self._thread.shutdown(wait=True)
        if error is None:
            for each in self._begun:
                each.result()


def write_stream(folder: Path, files: Sequence[ShardFile], groups: Sequence[Group], journal: Journal, report: Report) -> dict[str, str]:
    """Writes the files of a plan that the journal does not name as whole.

    Memory: the largest group, or several that are together no larger. A group's tensors that are views of mapped files take none.

    Args:
        folder: exists, with the folders of all files.
        files: the plan. Its tensors are those of the groups, in the same order.
        groups: makes the tensors.
        journal: of the folder, begun.
        report: told of progress; files that are there already count.

    Returns:
        Checksum of every file by its name.

    Raises:
        OSError: naming the file that cannot be written. The files before it stay, and the journal names them.
    """
    place = {name: file.name for file in files for name in file.tensors}
    assert list(place) == [name for group in groups for name in group.specs], "the plan is of other tensors"
    missing = [file for file in files if file.name not in journal.done]
    report(sum(file.nbytes for file in files if file.name in journal.done))
    whole = set(journal.done)
    stream = read_ahead(groups, lambda name: place[name] not in whole)
    with ThreadPoolExecutor(1, thread_name_prefix="vita-hash") as hasher, Finishing(folder, journal) as finishing:
        for file in missing:
            finishing.add(file.name, _write_file(folder / file.name, file, stream, hasher, report))
    return {file.name: journal.done[file.name] for file in files}


def _write_file(path: Path, file: ShardFile, stream: Iterator[tuple[str, torch.Tensor]], hasher: ThreadPoolExecutor, report: Report) -> str:
    digest = checksum(file.header)
    with naming(path), path.open("wb") as out:
        out.write(file.header)
        report(len(file.header))
        for name, spec in file.tensors.items():
            found, tensor = next(stream)
            assert found == name and Spec.of(tensor) == spec, (found, name, Spec.of(tensor), spec)
            content = tensor_bytes(tensor)
            for block in _hashed_blocks(content, digest, hasher):
                out.write(block)
                report(len(block))
                del block
            del tensor, content  # and the block of it, before the next tensor is made
    return str(digest.hexdigest())


def _hashed_blocks(content: memoryview, digest: Any, hasher: ThreadPoolExecutor) -> Iterator[memoryview]:
    """Blocks of a tensor's bytes, each behind its hash, while the next one is hashed.

    Hashing reads a mapped file's pages into memory. write() would do that too, but page by page, at less than half of the speed.
    """
    blocks = [content[first : first + _BLOCK] for first in range(0, len(content), _BLOCK)]
    hashes = [hasher.submit(digest.update, block) for block in blocks]
    for block, hashed in zip(blocks, hashes, strict=True):
        hashed.result()
        yield block
