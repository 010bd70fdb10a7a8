"""Indexes the files of a mixture: each once, over several processes where it is large, and again only when it changed."""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pyarrow as pa

from mindspeed_vita.data.formats import adapter_for, format_of, rules_of
from mindspeed_vita.data.index_file import (
    FORMAT,
    IndexHead,
    SourceStamp,
    content_hash,
    file_content,
    fresh_head,
    make_batch,
    row_columns,
    write_index,
)
from mindspeed_vita.data.lifetime import live_no_longer_than
from mindspeed_vita.data.measure import Measured, Measurer
from mindspeed_vita.data.media.limits import DecodeSettings
from mindspeed_vita.data.media.paths import MediaError
from mindspeed_vita.data.rows import Row, iter_rows, parse_row, row_digest
from mindspeed_vita.data.templates import get_template
from mindspeed_vita.data.tokenizer import load_tokenizer, tokenizer_fingerprint, vision_token_ids

OnProgress = Callable[[str, int, int], None]
"""Called while files are indexed, with a file's name, its bytes so far and its bytes in all."""
_CHUNK = 2000
"""Most rows measured at a time."""
_CHUNK_BYTES = 4 << 20
"""Text at which a chunk ends although it has fewer rows: what waits in memory goes by bytes, and rows may be long."""
_ALONE = 16 << 20
"""Bytes of JSON that one process measures faster than others could be started for."""


_MANY = 200
"""Files, however small, that are worth starting processes for: each takes some milliseconds."""


class ProgressLines:
    """A OnProgress that prints a line on standard error now and then, where indexing takes long."""

    def __init__(self, seconds: float = 10.0) -> None:
        self._seconds = seconds
        self._last = time.monotonic()

    def __call__(self, path: str, done: int, total: int) -> None:
        if time.monotonic() - self._last > self._seconds:
            self._last = time.monotonic()
            print(f"indexing {path}: {done / max(total, 1):.0%}", file=sys.stderr, flush=True)


@dataclass(frozen=True, kw_only=True)
class IndexSettings:
    """What an index depends on beside the file itself."""

    tokenizer: str
    """Folder."""
    template: str
    decoding: DecodeSettings

    def open(self) -> Measurer:
        """A measurer with the tokenizer loaded."""
        template = get_template(self.template)
        tokenizer = load_tokenizer(self.tokenizer, template)
        return Measurer(tokenizer=tokenizer, template=template, ids=vision_token_ids(tokenizer), decoding=self.decoding)

    def key(self, tokenizer: Any) -> str:
        """Equal keys measure equally; the file's own content is not part of it."""
        caps = self.decoding
        limits: list[Any] = [caps.max_bytes, caps.max_pixels, caps.max_video_frames, caps.max_video_seconds]
        limits += [] if caps.pixels == "shown" else [caps.pixels]
        return hashlib.sha256(json.dumps([FORMAT, tokenizer_fingerprint(tokenizer), self.template, limits]).encode()).hexdigest()


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
    return folder / "index" / f"{Path(source).name.split('.')[0]}-{name}.parquet"


def index_file(
    folder: Path,
    source: str,
    root: str,
    crew: Crew,
    *,
    key: str,
    format_name: str = "",
    again: bool = False,
    progress: OnProgress | None = None,
) -> tuple[Path, IndexHead]:
    """The index of one file of samples, made if it is missing or the file changed.

    Args:
        folder: of all indexes.
        source: the file.
        root: folder that its media lie below.
        crew: who measures it.
        key: IndexSettings.key of the tokenizer in use.
        format_name: of the mixture's entry; empty: by the file's suffix.
        again: also make it anew where it skipped samples: a missing picture may have come since.
        progress: called as it goes.

    Raises:
        ValueError: the file cannot be read, or a row is no sample; names file and line.
    """
    target = index_path(folder, source, root, f"{key}{format_name}{rules_of(source, format_name)}")
    adapter = adapter_for(source, format_name)
    head = fresh_head(target, source) if os.path.exists(source) else None
    if head is not None and not (again and head.num_skipped):
        return target, head
    before = os.stat(source) if os.path.exists(source) else None
    content = content_hash()
    rows_path, is_array, rows = iter_rows(source, target.with_suffix(".rows"), adapter, content)
    assert before is not None, "iter_rows refuses a file that is missing"
    total = os.path.getsize(rows_path)

    def stamp() -> SourceStamp:
        found = content.hexdigest() if rows_path == source else file_content(source)
        return SourceStamp(source, before.st_size, before.st_mtime_ns, found)

    batches = crew.measure(_chunks(rows), total, root, source, is_array)
    return target, write_index(target, _reported(batches, source, total, progress), stamp, rows_path=rows_path, is_array=is_array)


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
    done = {file: found for file in dict.fromkeys(files) if (found := _fresh(folder, file, key, again)) is not None}
    stale = [file for file in dict.fromkeys(files) if file not in done]
    done |= crew.index_whole(_whole_files(stale, crew.processes), folder, key=key, again=again, progress=progress)
    return [
        done.get(file)
        or index_file(folder, file.source, file.root, crew, key=key, format_name=file.format_name, again=again, progress=progress)
        for file in files
    ]


def _fresh(folder: Path, file: FileToIndex, key: str, again: bool) -> tuple[Path, IndexHead] | None:
    """The index of a file where it still describes the file."""
    target = index_path(folder, file.source, file.root, f"{key}{file.format_name}")
    head = fresh_head(target, file.source) if os.path.exists(file.source) else None
    return (target, head) if head is not None and not (again and head.num_skipped) else None


def _whole_files(stale: Sequence[FileToIndex], processes: int) -> list[FileToIndex]:
    """Files that one process each indexes: where they are worth it, small files, and shards where there is one for each process."""
    sizes = {file: os.path.getsize(file.source) for file in stale if os.path.exists(file.source)}
    formats = {file: format_of(file.source, file.format_name) for file in sizes}
    shards = [file for file in sizes if formats[file] in ("webdataset", "parquet")]
    small = [file for file in sizes if formats[file] == "json" and sizes[file] < _ALONE]
    chosen = {*small, *(shards if len(shards) >= processes else ())}
    if processes == 1 or len(chosen) < 2 or (len(chosen) < _MANY and sum(sizes[file] for file in chosen) < _ALONE):
        return []
    return [file for file in stale if file in chosen]


def _chunks(rows: Iterator[Row]) -> Iterator[list[Row]]:
    chunk: list[Row] = []
    size = 0
    for row in rows:
        chunk.append(row)
        size += len(row.text)
        if len(chunk) >= _CHUNK or size >= _CHUNK_BYTES:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


def _reported(batches: Iterator[pa.RecordBatch], source: str, total: int, progress: OnProgress | None) -> Iterator[pa.RecordBatch]:
    done = 0
    for batch in batches:
        yield batch
        done += sum(batch.column("size").to_pylist()) + len(batch)
        if progress is not None:
            progress(source, min(done, total), total)


def _measure(measurer: Measurer, rows: Sequence[Row], root: str, source: str, is_array: bool) -> pa.RecordBatch:
    samples = [parse_row(row.text, source, row.place, is_array) for row in rows]
    found = []
    for row, measured in zip(rows, measurer.measure_all(samples, root)):
        if isinstance(measured, MediaError):
            reason = f"{measured.path}: {measured.reason}" if measured.path else measured.reason
            # a path may hold half a surrogate pair, which neither Parquet nor a terminal takes
            outcome: Measured | tuple[str, bool] = (reason.encode("utf-8", "backslashreplace").decode(), bool(measured.path))
        else:
            outcome = measured
        found.append(row_columns((row.offset, len(row.text), row.place), row_digest(row.text), outcome))
    return make_batch(found)


_of_this_process: list[Measurer] = []


def _start(settings: IndexSettings, parent: int) -> None:
    live_no_longer_than(parent)
    _of_this_process[:] = [settings.open()]


def _measure_here(rows: list[Row], root: str, source: str, is_array: bool) -> pa.RecordBatch:
    return _measure(_of_this_process[0], rows, root, source, is_array)


def _index_here(folder: Path, file: FileToIndex, key: str, again: bool) -> tuple[Path, IndexHead]:
    crew = Crew(None, 1, _of_this_process[0])
    return index_file(folder, file.source, file.root, crew, key=key, format_name=file.format_name, again=again)


class Crew:
    """Who measures: this process, and where a file is large processes of their own, started when the first such file comes."""

    def __init__(self, settings: IndexSettings | None, processes: int, measurer: Measurer | None = None) -> None:
        """Sets it up; nothing is started yet. Settings may be None where a measurer is given and there is one process."""
        self._settings = settings
        self.processes = processes
        self._pool: ProcessPoolExecutor | None = None
        self._measurer = measurer

    def __enter__(self) -> Crew:
        return self

    def __exit__(self, kind: object, *error: object) -> None:
        if self._pool is not None:
            if kind is not None:  # a chunk under way may hold many videos: nobody wants its result
                for process in list((self._pool._processes or {}).values()):
                    process.terminate()
            self._pool.shutdown(cancel_futures=True)

    def measure(self, chunks: Iterator[list[Row]], size: int, root: str, source: str, is_array: bool) -> Iterator[pa.RecordBatch]:
        """A batch for each chunk, in order, with a bounded number of chunks in memory.

        Args:
            chunks: rows of one file.
            size: bytes of the file.
            root: folder that its media lie below.
            source: the file, for messages.
            is_array: whether it is a JSON array.
        """
        if self.processes == 1 or size < _ALONE:
            self._measurer = self._measurer or self._opened_settings().open()
            for chunk in chunks:
                yield _measure(self._measurer, chunk, root, source, is_array)
            return
        pool = self._started()
        waiting: list[Future[pa.RecordBatch]] = []
        try:
            for chunk in chunks:
                waiting.append(pool.submit(_measure_here, chunk, root, source, is_array))
                if len(waiting) >= 2 * self.processes:
                    yield waiting.pop(0).result()
            for future in waiting:
                yield future.result()
        except BrokenProcessPool as error:
            raise _died(source) from error

    def index_whole(
        self, files: Sequence[FileToIndex], folder: Path, *, key: str, again: bool, progress: OnProgress | None
    ) -> Iterator[tuple[FileToIndex, tuple[Path, IndexHead]]]:
        """Each file with its index, made by one of the processes."""
        if not files:
            return
        pool = self._started()
        waiting = [(file, pool.submit(_index_here, folder, file, key, again)) for file in files]
        for place, (file, future) in enumerate(waiting, start=1):
            try:
                yield file, future.result()
            except BrokenProcessPool as error:
                raise _died(file.source) from error
            if progress is not None:
                progress(f"{len(files):,} files", place, len(files))

    def _opened_settings(self) -> IndexSettings:
        assert self._settings is not None, "a crew without settings has a measurer"
        return self._settings

    def _started(self) -> ProcessPoolExecutor:
        if self._pool is None:
            # spawned: this process may hold an accelerator and threads, which a fork does not survive
            self._pool = ProcessPoolExecutor(
                self.processes, mp_context=get_context("spawn"), initializer=_start, initargs=(self._opened_settings(), os.getpid())
            )
        return self._pool


def _died(source: str) -> ValueError:
    return ValueError(
        f"{source}: a process that measured its rows died (killed, perhaps for memory); data.index_processes=1 measures in one process "
        "and shows at which row"
    )
