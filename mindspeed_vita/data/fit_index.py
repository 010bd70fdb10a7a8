"""From the index of each file to the columns of a mixture: the drawn samples, fitted to a stage's packs.

What fits as it is, nearly all, is fitted by the column; only what exceeds a pack is looked at one by one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import pyarrow as pa

from mindspeed_vita.data.columns import ColumnWriter
from mindspeed_vita.data.fitting import FittedSample, fit_sample
from mindspeed_vita.data.index_file import IndexHead, read_batches, row_measured
from mindspeed_vita.data.media.limits import MediaLimits
from mindspeed_vita.data.media.paths import MediaError
from mindspeed_vita.data.media.video import VideoHeader
from mindspeed_vita.data.rows import row_place
from mindspeed_vita.hf.token_layout import image_tile_count, image_token_count, video_token_count

_AT_A_TIME = 1 << 16
"""Rows that are fitted together, at least, where there are as many."""


@dataclass(frozen=True)
class SkippedSample:
    """A sample left out."""

    where: str
    """File and line."""
    reason: str
    source: str = ""
    media_at_fault: bool = False
    """A picture or video could not be used; otherwise the row itself could not."""
    at_fault: bool = False
    """The row, a picture or a video is wrong; otherwise the sample merely does not fit a pack of this stage."""


@dataclass(frozen=True, kw_only=True)
class FitSettings:
    """What decides whether and how a sample fits."""

    seq_length: int
    max_images: int
    limits: MediaLimits
    group: int = 1
    """Drawn rows that stay together (data.group)."""


@dataclass(frozen=True)
class DrawnFile:
    """A file of samples and what is drawn of it."""

    parquet: Path
    """Its index."""
    head: IndexHead
    rows: np.ndarray
    """int64, drawn rows, group by group, repeats allowed."""
    source_id: int
    """Entry of the mixture."""
    source: str
    """Name of that entry."""
    file_id: int


class Fitter:
    """Appends the drawn rows of files, each once, and their draws. Rows of small files are fitted together: each part costs the same."""

    def __init__(self, writer: ColumnWriter, settings: FitSettings) -> None:
        self._writer = writer
        self._settings = settings
        self._waiting: list[_Part] = []
        self._unfinished: list[tuple[np.ndarray, np.ndarray]] = []
        self._skipped: list[SkippedSample] = []

    def add(self, file: DrawnFile) -> None:
        """Takes a file; some of its rows may wait for flush()."""
        wanted = np.zeros(file.head.num_rows, dtype=bool)
        wanted[file.rows] = True
        sample_of_row = np.full(file.head.num_rows, -1, dtype=np.int64)
        first = 0
        for table in read_batches(file.parquet) if len(file.rows) else ():
            places = np.flatnonzero(wanted[first : first + len(table)])
            if len(places):
                part = table if len(places) == len(table) else table.take(pa.array(places))
                self._waiting.append(_Part(file, part, first + places, sample_of_row))
            first += len(table)
            if sum(len(part.table) for part in self._waiting) >= _AT_A_TIME:
                self._fit()
        self._unfinished.append((file.rows, sample_of_row))

    def flush(self) -> list[SkippedSample]:
        """Writes all that waits; returns the drawn rows that cannot be used, since the last call."""
        self._fit()
        skipped, self._skipped = self._skipped, []
        return skipped

    def _fit(self) -> None:
        parts, self._waiting = self._waiting, []
        if parts:
            self._fit_together(parts)
        for rows, sample_of_row in self._unfinished:
            drawn = sample_of_row[rows]
            self._writer.append(draws=drawn[drawn >= 0])
            self._number_groups(drawn)
        self._unfinished = []

    def _number_groups(self, drawn: np.ndarray) -> None:
        """Says which of a file's draws stay together. A row that cannot be used leaves the rest of its group."""
        size = self._settings.group
        if size > 1:
            numbers = self._writer.num_groups + np.arange(len(drawn)) // size
            self._writer.append(groups=numbers[drawn >= 0])
            self._writer.num_groups += len(drawn) // size

    def _fit_together(self, parts: Sequence[_Part]) -> None:
        table = pa.concat_tables([part.table for part in parts]).combine_chunks()
        before = self._writer.num_samples
        kept = _fit_part(self._writer, table, parts, self._settings, self._skipped)
        samples = np.full(len(table), -1, dtype=np.int64)
        samples[kept] = before + np.arange(len(kept))
        start = 0
        for part in parts:
            part.sample_of_row[part.rows] = samples[start : start + len(part.rows)]
            start += len(part.rows)


@dataclass(frozen=True)
class _Part:
    """Drawn rows of one file."""

    file: DrawnFile
    table: pa.Table
    rows: np.ndarray
    """int64, their numbers in the file."""
    sample_of_row: np.ndarray
    """int64 for each row of the file, filled when the part is fitted: its sample, or -1."""


def _fit_part(
    writer: ColumnWriter, part: pa.Table, parts: Sequence[_Part], settings: FitSettings, skipped: list[SkippedSample]
) -> np.ndarray:
    """Appends the usable rows of a table, which is the tables of the parts; returns their places in it."""
    owners = np.repeat(np.arange(len(parts)), [len(one.table) for one in parts])
    full = _FullSize(part, settings)
    usable = full.usable.copy()
    replaced: dict[int, FittedSample] = {}
    for place in np.flatnonzero(~usable).tolist():
        row = {name: part.column(name)[place].as_py() for name in part.column_names}
        reason, at_fault = row["reason"], row["reason"] is not None
        if reason is None:
            try:
                replaced[place] = fit_sample(
                    row_measured(row), seq_length=settings.seq_length, max_images=settings.max_images, limits=settings.limits
                )
                usable[place] = True
                continue
            except MediaError as error:
                reason = error.reason
        file = parts[owners[place]].file
        where = row_place(file.head.path, row["place"], file.head.is_array)
        skipped.append(SkippedSample(where, reason, file.source, bool(row["media_at_fault"]), at_fault))
    kept = np.flatnonzero(usable)
    num_tokens, num_tiles, num_messages = full.num_tokens.copy(), full.num_tiles.copy(), full.num_turns.copy()
    for place, fitted in replaced.items():
        num_tokens[place], num_tiles[place], num_messages[place] = fitted.num_tokens, fitted.media.num_tiles, fitted.num_messages
    media, fps, counts = _media_columns(full, kept, replaced)
    start = writer.num_media
    writer.append(
        file_ids=np.array([one.file.file_id for one in parts])[owners[kept]],
        offsets=_numbers(part, "offset")[kept],
        sizes=_numbers(part, "size")[kept],
        places=_numbers(part, "place")[kept],
        source_ids=np.array([one.file.source_id for one in parts])[owners[kept]],
        num_tokens=num_tokens[kept],
        num_tiles=num_tiles[kept],
        num_messages=num_messages[kept],
        media=media,
        media_fps=fps,
        media_cu=start + np.cumsum(counts),
        digests=_digests(part)[kept],
    )
    return kept


def _media_columns(full: _FullSize, kept: np.ndarray, replaced: dict[int, FittedSample]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(media int[m, 3], fps, media of each kept row), with what was fitted one by one in its place."""
    bounds, counts = full.media_cu, np.diff(full.media_cu)
    chosen = np.repeat(full.usable, counts)
    parts, rates, done = [], [], 0
    for place, fitted in sorted(replaced.items()):
        start, stop = int(bounds[place]), int(bounds[place + 1])
        parts.append(full.media[done:start][chosen[done:start]])
        rates.append(full.fps[done:start][chosen[done:start]])
        clips = start + np.flatnonzero(full.raw[start:stop, 0] != 0)[: len(fitted.media.frame_limits)]
        pictures = np.array([(0, *grid) for grid in fitted.media.grids], dtype=np.int64).reshape(-1, 3)
        videos = full.raw[clips]
        videos[:, 2] = fitted.media.frame_limits
        parts += [pictures, videos]
        rates += [np.zeros(len(pictures)), full.fps[clips]]
        counts[place], done = len(pictures) + len(videos), stop
    parts.append(full.media[done:][chosen[done:]])
    rates.append(full.fps[done:][chosen[done:]])
    return np.concatenate(parts), np.concatenate(rates), counts[kept]


class _FullSize:
    """Every row of a table at its full size."""

    def __init__(self, table: pa.Table, settings: FitSettings) -> None:
        limits = settings.limits
        turns = _list_bounds(table, "turn_tokens")
        self.num_turns = np.diff(turns)
        text = _sums(_list_values(table, "turn_tokens"), turns)
        self.media_cu = _list_bounds(table, "media_kind")
        columns = [_list_values(table, name).astype(np.int64) for name in ("media_kind", "media_a", "media_b")]
        self.raw = np.stack(columns, axis=1) if len(columns[0]) else np.empty((0, 3), dtype=np.int64)
        self.fps = _list_values(table, "media_fps")
        uneven = (self.raw[:, 0] == 1) & (self.raw[:, 2] > 0)
        if limits.sampler == "time" and uneven.any():
            # by time only the length of a clip counts, and that is frames / fps
            self.fps = np.where(uneven, 1000 * self.raw[:, 1] / np.maximum(self.raw[:, 2], 1), self.fps)
        self.media = self.raw.copy()
        tokens, tiles = np.zeros(len(self.raw), dtype=np.int64), np.zeros(len(self.raw), dtype=np.int64)
        pictures = self.raw[:, 0] == 0
        if pictures.any():
            sizes, which = np.unique(self.raw[pictures, 1:], axis=0, return_inverse=True)
            grids = [_full_grid(limits, width, height) for width, height in sizes.tolist()]
            self.media[pictures, 1:] = np.array(grids)[which.reshape(-1)]
            tokens[pictures] = np.array([image_token_count(grid, limits.tokens_per_tile) for grid in grids])[which.reshape(-1)]
            tiles[pictures] = np.array([image_tile_count(grid) for grid in grids])[which.reshape(-1)]
        for place in np.flatnonzero(~pictures).tolist():
            kind, frames, _ = self.raw[place].tolist()
            tiles[place] = _num_frames(limits, kind == 2, frames, float(self.fps[place]))
            tokens[place] = video_token_count(int(tiles[place]), limits.tokens_per_tile)
            self.media[place, 2] = limits.max_frames
        self.num_tokens = text + _sums(tokens, self.media_cu)
        self.num_tiles = _sums(tiles, self.media_cu)
        num_pictures = _sums(pictures.astype(np.int64), self.media_cu)
        good = table.column("reason").is_null().to_numpy(zero_copy_only=False) if len(table) else np.zeros(0, bool)
        self.usable = good & (self.num_tokens <= settings.seq_length) & (num_pictures <= settings.max_images)


@lru_cache(1 << 20)
def _full_grid(limits: MediaLimits, width: int, height: int) -> tuple[int, int]:
    return limits.grid((width, height), limits.max_tiles)


@lru_cache(1 << 16)
def _num_frames(limits: MediaLimits, is_folder: bool, frames: int, fps: float) -> int:
    return len(limits.frames(VideoHeader(is_folder, frames, fps), limits.max_frames))


def _numbers(table: pa.Table, name: str) -> np.ndarray:
    return table.column(name).to_numpy()


def _digests(table: pa.Table) -> np.ndarray:
    """uint64[n], the first eight bytes of each row's digest."""
    column = table.column("digest").combine_chunks()
    values = np.frombuffer(column.buffers()[1], dtype="<u8").reshape(-1, 2)  # sixteen bytes a row, none of them null
    return values[column.offset : column.offset + len(column), 0]


def _list_bounds(table: pa.Table, name: str) -> np.ndarray:
    """int64[n + 1], where each row's list begins."""
    lengths = table.column(name).combine_chunks().value_lengths()
    return np.concatenate([[0], np.cumsum(lengths.to_numpy(zero_copy_only=False), dtype=np.int64)]).astype(np.int64)


def _list_values(table: pa.Table, name: str) -> np.ndarray:
    return table.column(name).combine_chunks().flatten().to_numpy(zero_copy_only=False)


def _sums(values: np.ndarray, bounds: np.ndarray) -> np.ndarray:
    """Sum of each row's values."""
    totals = np.concatenate([[0], np.cumsum(values, dtype=np.int64)])
    return totals[bounds[1:]] - totals[bounds[:-1]]
