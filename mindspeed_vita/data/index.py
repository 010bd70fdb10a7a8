"""The sample index: token and tile counts of every sample, from text and media headers only. Flat columns, one row a sample."""

from __future__ import annotations

import hashlib
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from mindspeed_vita.data.fitting import FittedMedia, MediaLimits, fit_media
from mindspeed_vita.data.media.image import probe_picture
from mindspeed_vita.data.media.paths import MediaError, resolve
from mindspeed_vita.data.media.video import VideoHeader, probe_video
from mindspeed_vita.data.sample import Sample
from mindspeed_vita.data.templates import ChatTemplate
from mindspeed_vita.hf.token_layout import VisionTokenIds


@dataclass(frozen=True)
class SkippedSample:
    """A sample left out of the index."""

    where: str
    """File and line."""
    reason: str


@dataclass(frozen=True)
class SampleIndex:
    """n samples, m pictures and videos (of each sample: pictures, then videos)."""

    file_ids: np.ndarray
    """int64[n], file of each sample."""
    row_ids: np.ndarray
    """int64[n], row in that file."""
    source_ids: np.ndarray
    """int64[n], entry of the mixture."""
    num_tokens: np.ndarray
    """int64[n], tokens with media expanded."""
    num_tiles: np.ndarray
    """int64[n], tiles."""
    num_messages: np.ndarray
    """int64[n], turns kept; fewer than the row has where it was cut to fit a pack."""
    media_cu: np.ndarray
    """int64[n + 1], bounds of each sample's media."""
    media: np.ndarray
    """int64[m, 4]: picture (0, columns, rows, 0); video file (1, frames, limit, 0) or folder (2, frames, limit, 0)."""
    media_fps: np.ndarray
    """float64[m], frame rate of a video, 0 for a picture."""
    digests: np.ndarray
    """uint8[n, 16], of each row's JSON."""

    def __len__(self) -> int:
        return len(self.row_ids)

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

    def digest(self) -> str:
        """sha256 over all columns."""
        total = hashlib.sha256()
        for column in fields(self):
            value = getattr(self, column.name)
            total.update(f"{column.name}{value.dtype}{value.shape}".encode())
            total.update(np.ascontiguousarray(value).tobytes())
        return total.hexdigest()


class IndexBuilder:
    """Measures samples one at a time and collects the columns."""

    def __init__(
        self,
        *,
        tokenizer: Any,
        template: ChatTemplate,
        ids: VisionTokenIds,
        limits: MediaLimits,
        seq_length: int,
        max_images: int,
    ) -> None:
        self._tokenizer = tokenizer
        self._template = template
        self._ids = ids
        self._limits = limits
        self._seq_length = seq_length
        self._max_images = max_images
        self._rows: list[tuple[int, int, int, int, int, int]] = []
        self._digests: list[bytes] = []
        self._media_counts: list[int] = []
        self._media: list[tuple[int, int, int, int]] = []
        self._fps: list[float] = []
        self.skipped: list[SkippedSample] = []

    def add(self, sample: Sample, *, where: str, root: str, place: tuple[int, int, int], text: bytes) -> int | None:
        """Adds a sample, or counts it as skipped.

        Args:
            sample: parsed row.
            where: file and line.
            root: folder that its media lie below.
            place: (file id, row, source id).
            text: the row as it stands in the file.

        Returns:
            The sample's id, or None if it was skipped.
        """
        try:
            num_messages, media, headers, num_tokens = self._measure(sample, root)
        except MediaError as error:
            self.skipped.append(SkippedSample(where, f"{error.path}: {error.reason}" if error.path else error.reason))
            return None
        self._rows.append((*place, num_tokens, media.num_tiles, num_messages))
        self._digests.append(hashlib.blake2b(text, digest_size=16).digest())
        self._media.extend((0, columns, rows, 0) for columns, rows in media.grids)
        self._media.extend((1 + head.is_folder, head.num_frames, limit, 0) for head, limit in zip(headers, media.frame_limits))
        self._fps.extend([0.0] * len(media.grids) + [head.fps for head in headers])
        self._media_counts.append(len(media.grids) + len(headers))
        return len(self._rows) - 1

    def _measure(self, sample: Sample, root: str) -> tuple[int, FittedMedia, Sequence[VideoHeader], int]:
        for name, paths in (("images", sample.images), ("videos", sample.videos)):
            if "" in paths:
                raise MediaError("", f"entry {paths.index('') + 1} of {name} is null or empty; expected a path")
        turns = self._template.encode_turns(sample.messages, self._tokenizer)
        ids = self._ids
        # row k: tokens, pictures and videos of the first k turns
        totals = np.zeros((len(turns) + 1, 3), dtype=np.int64)
        totals[1:] = np.cumsum([(len(turn), turn.count(ids.image_tag), turn.count(ids.video_tag)) for turn, _ in turns], axis=0)
        for kind, found, given in (("image", totals[-1, 1], sample.images), ("video", totals[-1, 2], sample.videos)):
            if found != len(given):
                raise MediaError("", f"found {found} <{kind}> tags for {len(given)} {kind}s, expected one tag each")
        if any(token in turn for token in ids.placeholders for turn, _ in turns):
            raise MediaError("", "the text holds a reserved token (<IMG_CONTEXT>, <VID_CONTEXT> or <PATCH_CONTEXT>); remove it")
        if len(sample.images) > self._max_images:
            raise MediaError("", f"found {len(sample.images)} pictures, data.max_images allows {self._max_images}")
        if not any(flag for _, supervised in turns for flag in supervised):
            raise MediaError("", "no assistant turn, so there is nothing to learn")
        sizes = [probe_picture(resolve(path, root)) for path in sample.images]
        headers = [probe_video(path, root) for path in sample.videos]

        pictures, videos = totals[:, 1].tolist(), totals[:, 2].tolist()
        text = (totals[:, 0] - totals[:, 1] - totals[:, 2]).tolist()

        def fit(kept: int) -> FittedMedia | None:
            return fit_media(sizes[: pictures[kept]], headers[: videos[kept]], self._seq_length - text[kept], self._limits)

        ends = [place for place, message in enumerate(sample.messages, start=1) if message.role == "assistant"]
        if ends[-1] < len(turns):
            ends.append(len(turns))
        kept = ends[-1]
        media = fit(kept)
        if media is None:
            # fewer turns never need more room
            too_long = bisect_left(ends, True, key=lambda end: fit(end) is None)
            kept = ends[too_long - 1] if too_long else 0
            media = fit(kept) if kept else None
        if media is None:
            raise MediaError("", f"does not fit a pack of {self._seq_length} tokens even with the fewest frames, tiles and turns")
        assert text[kept] + media.num_tokens <= self._seq_length, (text[kept], media)
        return kept, media, headers[: videos[kept]], text[kept] + media.num_tokens

    def build(self) -> SampleIndex:
        """The columns of all samples added so far."""
        columns = np.ascontiguousarray(np.array(self._rows, dtype=np.int64).reshape(-1, 6).T)
        return SampleIndex(
            file_ids=columns[0],
            row_ids=columns[1],
            source_ids=columns[2],
            num_tokens=columns[3],
            num_tiles=columns[4],
            num_messages=columns[5],
            media_cu=np.concatenate([[0], np.cumsum(self._media_counts, dtype=np.int64)]).astype(np.int64),
            media=np.array(self._media, dtype=np.int64).reshape(-1, 4),
            media_fps=np.array(self._fps, dtype=np.float64),
            digests=np.frombuffer(b"".join(self._digests), dtype=np.uint8).reshape(-1, 16),
        )
