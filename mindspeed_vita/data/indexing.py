"""Indexes the files of a mixture: each once, over several processes where it is large, and again only when it changed."""

from __future__ import annotations

import hashlib
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from mindspeed_vita.data.crew import Crew
from mindspeed_vita.data.formats import adapter_for, format_of, part_reader, rules_of
from mindspeed_vita.data.index_file import IndexHead, SourceStamp, content_hash, file_content, fresh_head, write_index
from mindspeed_vita.data.index_parts import measured_parts
from mindspeed_vita.data.measure import Measurer
from mindspeed_vita.data.row_batches import chunks, measure_chunk
from mindspeed_vita.data.rows import iter_rows

OnProgress = Callable[[str, int, int], None]
"""Called while files are indexed, with a file's name, its bytes so far and its bytes in all."""
_ALONE = 16 << 20
"""Bytes of JSON that one process measures faster than others could be started for."""
_MANY = 200
"""Files, however small, that are worth starting processes for: each takes some milliseconds."""
_BATCH = 32
"""Most files that a process is given at a time."""


class ProgressLines:
    """A OnProgress that prints a line on standard error now and then, where indexing takes long."""

    def __init__(self, seconds: float = 10.0) -> None:
        self._seconds = seconds
        self._last = time.monotonic()

    def __call__(self, path: str, done: int, total: int) -> None:
        if time.monotonic() - self._last > self._seconds:
            self._last = time.monotonic()
            print(f"indexing {path}: {done / max(total, 1):.0%}", file=sys.stderr, flush=True)


@dataclass(frozen=True)
class FileToIndex:
    """One file of a mixture."""

    source: str
    root: str
    """Folder that its media lie below."""
    format_name: str = ""
    """Of the mixture's entry; empty: by the file's suffix."""


def index_path(folder: Path, source: str, root: str, key: str) -> Path:
    """Where the index of a file lies."""
    name = hashlib.sha256("\0".join([os.path.abspath(source), os.path.abspath(root), key]).encode()).hexdigest()[:16]
    return folder / "index" / f"{os.path.basename(source).split('.')[0]}-{name}.parquet"


def _target(folder: Path, file: FileToIndex, key: str) -> Path:
    return index_path(folder, file.source, file.root, f"{key}{file.format_name}{rules_of(file.source, file.format_name)}")


def index_file(
    folder: Path, file: FileToIndex, crew: Crew, *, key: str, again: bool = False, progress: OnProgress | None = None
) -> tuple[Path, IndexHead]:
    """The index of one file of samples, made if it is missing or the file changed.

    Args:
        folder: of all indexes.
        file: what to index.
        crew: who measures it.
        key: IndexSettings.key of the tokenizer in use.
        again: also make it anew where it skipped samples: a missing picture may have come since.
        progress: called as it goes.

    Raises:
        ValueError: the file cannot be read, or a row is no sample; names file and line.
    """
    target, source = _target(folder, file, key), file.source
    return _fresh(target, source, again) or (target, _index(target, file, crew, progress))


def _fresh(target: Path, source: str, again: bool) -> tuple[Path, IndexHead] | None:
    """The index of a file where it still describes the file."""
    head = fresh_head(target, source) if os.path.exists(source) else None
    return (target, head) if head is not None and not (again and head.num_skipped) else None


def _index(target: Path, file: FileToIndex, crew: Crew, progress: OnProgress | None) -> IndexHead:
    """Makes the index of a file. A large one is shared out over the crew; it has the same bytes, whoever measures it."""
    source, copy, adapter = file.source, target.with_suffix(".rows"), adapter_for(file.source, file.format_name)
    before = os.stat(source) if os.path.exists(source) else None
    content = content_hash()
    reader = part_reader(source, file.format_name)
    large = before is not None and crew.processes > 1 and before.st_size >= _ALONE
    if reader is not None and large and len(reader.sizes(source)) >= crew.processes:
        rows_path, is_array = str(copy), True
        batches = measured_parts(crew, reader, source, file.root, copy, partial(progress or _silent, source))
    else:
        rows_path, is_array, rows = iter_rows(source, copy, adapter, content)
        total = os.path.getsize(rows_path)
        jobs = chunks(rows, source, file.root, is_array)
        alone = crew.processes == 1 or total < _ALONE
        found = crew.here(measure_chunk, jobs) if alone else crew.together(measure_chunk, jobs, lambda _: source)
        batches = _reported(found, source, total, progress or _silent)
    assert before is not None, "a file that is missing was refused"

    def stamp() -> SourceStamp:
        read = content.hexdigest() if rows_path == source else file_content(source)
        return SourceStamp(source, before.st_size, before.st_mtime_ns, read)

    return write_index(target, batches, stamp, rows_path=rows_path, is_array=is_array)


def _silent(path: str, done: int, total: int) -> None:
    """A OnProgress to nobody."""


def _reported(batches: Iterator[pa.RecordBatch], source: str, total: int, progress: OnProgress) -> Iterator[pa.RecordBatch]:
    done = 0
    for batch in batches:
        yield batch
        done += pc.sum(batch.column("size")).as_py() + len(batch)
        progress(source, min(done, total), total)


def index_files(
    folder: Path,
    files: Sequence[FileToIndex],
    crew: Crew,
    *,
    key: str,
    again: bool = False,
    progress: OnProgress | None = None,
) -> list[tuple[Path, IndexHead]]:
    """The index of each of several files, in their order. Many small ones, and shards, are indexed at the same time, each by one process.

    Arguments and errors are those of index_file.
    """
    wanted = dict.fromkeys(files)
    done = {file: found for file in wanted if (found := _fresh(_target(folder, file, key), file.source, again)) is not None}
    whole = _whole_files([file for file in wanted if file not in done], crew.processes)
    jobs = [_Batch(folder, part, key, again) for part in _batches(whole, crew.processes)]
    num_done = 0
    for job, made in zip(jobs, crew.together(_index_batch, jobs, lambda job: job.files[0].source, ahead=len(jobs))) if jobs else ():
        done.update(zip(job.files, made, strict=True))
        num_done += len(made)
        (progress or _silent)(f"{len(whole):,} files", num_done, len(whole))
    return [done.get(file) or index_file(folder, file, crew, key=key, again=again, progress=progress) for file in files]


@dataclass(frozen=True)
class _Batch:
    """Files that one process indexes."""

    folder: Path
    files: Sequence[FileToIndex]
    key: str
    again: bool


def _index_batch(measurer: Measurer, batch: _Batch) -> list[tuple[Path, IndexHead]]:
    crew = Crew(None, 1, measurer)
    return [index_file(batch.folder, file, crew, key=batch.key, again=batch.again) for file in batch.files]


def _batches(files: Sequence[FileToIndex], processes: int) -> list[Sequence[FileToIndex]]:
    """Several files each where they are many, but never so many that a process is left without work."""
    size = max(1, min(_BATCH, len(files) // (4 * processes)))
    return [files[start : start + size] for start in range(0, len(files), size)]


def _whole_files(stale: Sequence[FileToIndex], processes: int) -> list[FileToIndex]:
    """Files that one process each indexes: where they are worth it, small files, and shards where there is one for each process.

    A shard that has parts, and more bytes than a process's even share of all, is shared out instead.
    """
    sizes = {file: os.path.getsize(file.source) for file in stale if os.path.exists(file.source)}
    formats = {file: format_of(file.source, file.format_name) for file in sizes}
    shards = [file for file in sizes if formats[file] in ("webdataset", "parquet")]
    share = max(_ALONE, sum(sizes[file] for file in shards) // processes)
    even = [file for file in shards if sizes[file] <= share or part_reader(file.source, file.format_name) is None]
    small = [file for file in sizes if formats[file] == "json" and sizes[file] < _ALONE]
    chosen = {*small, *(even if len(shards) >= processes else ())}
    if processes == 1 or len(chosen) < 2 or (len(chosen) < _MANY and sum(sizes[file] for file in chosen) < _ALONE):
        return []
    return [file for file in stale if file in chosen]
