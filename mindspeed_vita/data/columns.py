"""The samples of a mixture as flat columns, mapped from disk: what a pack needs to know of each sample, without reading its row."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, fields
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from mindspeed_vita.data.media.video import VideoHeader

_TYPES = {
    "file_ids": "<i4", "offsets": "<i8", "sizes": "<i4", "places": "<i4", "source_ids": "<i4", "num_tokens": "<i4", "num_tiles": "<i4",
    "num_messages": "<i4", "media_cu": "<i8", "media": "<i4", "media_fps": "<f8", "draws": "<u4",
    "digests": "<u8", "groups": "<u4",
}  # fmt: skip
_META = "columns.json"


@dataclass(frozen=True)
class SampleIndex:
    """n samples, m pictures and videos (of each sample: pictures, then videos), E drawn samples of an epoch."""

    file_ids: np.ndarray
    """int32[n], file of each sample."""
    offsets: np.ndarray
    """int64[n], byte at which its row begins."""
    sizes: np.ndarray
    """int32[n], bytes of the row."""
    places: np.ndarray
    """int32[n], line or item of the row."""
    source_ids: np.ndarray
    """int32[n], entry of the mixture."""
    num_tokens: np.ndarray
    """int32[n], tokens with media expanded."""
    num_tiles: np.ndarray
    """int32[n], tiles."""
    num_messages: np.ndarray
    """int32[n], turns kept; fewer than the row has where it was cut to fit a pack."""
    media_cu: np.ndarray
    """int64[n + 1], bounds of each sample's media."""
    media: np.ndarray
    """int32[m, 3]: picture (0, columns, rows); video file (1, frames, limit) or folder (2, frames, limit)."""
    media_fps: np.ndarray
    """float64[m], frame rate of a video, 0 for a picture."""
    draws: np.ndarray
    """uint32[E], samples of an epoch; a ratio above 1 repeats some."""
    groups: np.ndarray
    """uint32[E], group of each drawn sample, ascending; the samples of a group are in the order of their rows. Empty with data.group=1."""
    digests: np.ndarray
    """uint64[n], first eight bytes of each row's digest (rows.row_digest). Empty where an older version wrote the columns."""

    def __len__(self) -> int:
        return len(self.offsets)

    def digest(self, sample_id: int) -> int | None:
        """What the row of a sample must still have as the first eight bytes of its digest, or None where that was not kept."""
        return int(self.digests[sample_id]) if len(self.digests) else None

    def grids(self, sample_id: int) -> list[tuple[int, int]]:
        """(columns, rows) of each picture of a sample."""
        return [(int(row[1]), int(row[2])) for row in self._media(sample_id) if row[0] == 0]

    def videos(self, sample_id: int) -> list[tuple[VideoHeader, int]]:
        """(header, frame limit) of each video of a sample."""
        fps = self.media_fps[self.media_cu[sample_id] : self.media_cu[sample_id + 1]]
        rows = zip(self._media(sample_id), fps)
        return [(VideoHeader(bool(row[0] == 2), int(row[1]), float(rate)), int(row[2])) for row, rate in rows if row[0] != 0]

    def _media(self, sample_id: int) -> np.ndarray:
        return self.media[self.media_cu[sample_id] : self.media_cu[sample_id + 1]]

    @classmethod
    def open(cls, folder: Path) -> SampleIndex:
        """Maps the columns that a ColumnWriter wrote; nothing is read until it is looked at."""
        shapes = {"digests": [0], "groups": [0], **json.loads((folder / _META).read_text())}
        return cls(**{field.name: map_array(folder / field.name, _TYPES[field.name], shapes[field.name]) for field in fields(cls)})


def map_array(path: Path, dtype: str, shape: list[int]) -> np.ndarray:
    """An array on disk, mapped; an empty one cannot be."""
    if not np.prod(shape):
        return np.empty(shape, dtype)
    return np.memmap(path, dtype, "r", shape=tuple(shape))


class ColumnWriter:
    """Appends to the columns, a part at a time."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._files = {name: open(folder / name, "wb") for name in _TYPES}  # noqa: SIM115 - closed by __exit__
        self._sizes = dict.fromkeys(_TYPES, 0)
        self.num_groups = 0
        """Groups of drawn samples so far, with data.group above 1."""
        self.append(media_cu=np.zeros(1))

    @property
    def num_samples(self) -> int:
        """Samples written so far."""
        return self._sizes["offsets"]

    @property
    def num_draws(self) -> int:
        """Drawn samples so far."""
        return self._sizes["draws"]

    @property
    def num_media(self) -> int:
        """Pictures and videos written so far."""
        return self._sizes["media_fps"]

    def append(self, **columns: Any) -> None:
        """Adds rows to some columns."""
        for name, values in columns.items():
            self._files[name].write(np.ascontiguousarray(values, _TYPES[name]).tobytes())
            self._sizes[name] += len(values)

    def __enter__(self) -> ColumnWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for file in self._files.values():
            file.close()
        if kind is None:
            shapes = {name: [size, 3] if name == "media" else [size] for name, size in self._sizes.items()}
            (self._folder / _META).write_text(json.dumps(shapes) + os.linesep)
