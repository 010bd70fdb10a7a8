"""From samples to a PackedBatch: tokens, shifted labels, positions, documents, and this rank's tiles."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from mindspeed_vita.data.batch import IGNORE, MediaFailure, PackedBatch
from mindspeed_vita.data.media.decoder import Job, get_decoder
from mindspeed_vita.data.media.limits import DecodeSettings, MediaLimits
from mindspeed_vita.data.media.video import VideoHeader
from mindspeed_vita.data.positions import document_positions
from mindspeed_vita.data.sample import Sample
from mindspeed_vita.data.templates import ChatTemplate
from mindspeed_vita.hf.tiling import blank_tile
from mindspeed_vita.hf.token_layout import VisionTokenIds, expand, image_layout, image_tile_count, in_tag_order, video_layout
from mindspeed_vita.sharding import make_cp_plan, tile_owner


@dataclass(frozen=True)
class Medium:
    """One picture or video of a sample, ready to be cut."""

    path: str
    grid: tuple[int, int] | None
    """(columns, rows) of a picture."""
    header: VideoHeader | None
    numbers: tuple[int, ...]
    """Frames of a video."""
    factors: tuple[int, ...] = ()
    """By how much each frame is pooled (hf/frame_pooling.py); empty: none is. Training pools none."""

    @property
    def num_tiles(self) -> int:
        """Tiles, thumbnail included."""
        return image_tile_count(self.grid) if self.grid else len(self.numbers)


@dataclass(frozen=True)
class EncodedSample:
    """Tokens of one sample with its media expanded; T tokens, N tiles."""

    sample_id: int
    source_id: int
    source: str
    root: str
    tokens_T: np.ndarray
    """int64[T]."""
    labels_T: np.ndarray
    """int64[T], shifted: the label at t is the token at t + 1 where that is supervised; the last is never."""
    tile_starts_N: np.ndarray
    """int64[N], each tile's first context token."""
    media: tuple[Medium, ...]
    """In the order of their tags, which is the order of the tiles."""

    @property
    def factors_N(self) -> np.ndarray:
        """By how much each tile is pooled: int64[N], 1 for one that is not."""
        factors = [factor for medium in self.media for factor in medium.factors or (1,) * medium.num_tiles]
        return np.array(factors, dtype=np.int64)

    def masked(self, length: int, pad_id: int) -> EncodedSample:
        """The sample with nothing to learn, padded to a length that is at least its own."""
        missing = length - len(self.tokens_T)
        tokens = np.concatenate([self.tokens_T, np.full(missing, pad_id, dtype=np.int64)])
        return replace(self, tokens_T=tokens, labels_T=np.full(length, IGNORE, dtype=np.int64))


def encode_sample(
    sample: Sample,
    media: Sequence[Medium],
    *,
    tokenizer: Any,
    template: ChatTemplate,
    ids: VisionTokenIds,
    limits: MediaLimits,
    sample_id: int,
    source_id: int,
    source: str,
    root: str,
) -> EncodedSample:
    """Tokenises a sample and lays out its media, pictures first in media, then videos.

    Raises:
        ValueError: tags and media disagree.
    """
    text, supervised = template.encode(sample.messages, tokenizer)
    pictures = [medium for medium in media if medium.grid]
    videos = [medium for medium in media if not medium.grid]
    tags = [token for token in text if token in (ids.image_tag, ids.video_tag)]
    layouts = in_tag_order(
        text,
        ids,
        [image_layout(ids, medium.num_tiles, medium.grid, limits.tokens_per_tile) for medium in pictures if medium.grid],
        [video_layout(ids, medium.num_tiles, limits.tokens_per_tile, medium.factors) for medium in videos],
    )
    expanded = expand(text, ids, layouts)
    tokens = np.array(expanded.token_ids, dtype=np.int64)
    origins = np.array(expanded.origins, dtype=np.int64)
    learn = np.array(supervised, dtype=bool)[origins] & (origins >= 0)
    next_picture, next_video = iter(pictures), iter(videos)
    return EncodedSample(
        sample_id=sample_id,
        source_id=source_id,
        source=source,
        root=root,
        tokens_T=tokens,
        labels_T=shift_labels(tokens, learn),
        tile_starts_N=np.array(expanded.tile_starts, dtype=np.int64),
        media=tuple(next(next_picture if tag == ids.image_tag else next_video) for tag in tags),
    )


def shift_labels(tokens_T: np.ndarray, supervised_T: np.ndarray) -> np.ndarray:
    """Labels of one sample: at t the token at t + 1 if that is supervised, otherwise -100; the last is -100. int64[T]."""
    labels = np.full(len(tokens_T), IGNORE, dtype=np.int64)
    labels[:-1] = np.where(supervised_T[1:], tokens_T[1:], IGNORE)
    return labels


def assemble_pack(
    samples: Sequence[EncodedSample],
    *,
    seq_length: int,
    resets: bool,
    pad_id: int,
    context_ids: tuple[int, ...],
    tile_size: int,
    group_rank: int = 0,
    group_size: int = 1,
    ring_size: int = 1,
    node_size: int = 0,
    decode: bool = True,
    decoding: DecodeSettings | None = None,
    loss_weighting: str = "token",
    open_end: bool = False,
) -> PackedBatch:
    """Concatenates samples, pads to seq_length and decodes this rank's tiles.

    A medium that fails to decode leaves blank tiles and takes its sample out of the loss; token and tile counts never change.

    Args:
        samples: in pack order; their tokens fit seq_length.
        seq_length: S.
        resets: positions restart and attention stays inside each sample.
        pad_id: token of the padding.
        context_ids: tokens whose embeddings vision rows replace (VisionTokenIds.placeholders).
        tile_size: side of a tile, in pixels.
        group_rank: this rank in the tensor x context parallel group that shares the tiles.
        group_size: size of that group.
        ring_size: size of the ring that the plan is for (ParallelLayout.ring_size).
        node_size: its ranks that share a node (ParallelLayout.node_size).
        decode: False leaves every tile out, for ranks that encode none.
        decoding: caps and choices; None takes the defaults.
        loss_weighting: token | sample (DataConfig).
        open_end: what is free behind the last sample belongs to its document and is not padding: an answer will stand there.
    """
    lengths = np.array([len(sample.tokens_T) for sample in samples], dtype=np.int64)
    sample_cu = np.concatenate([[0], np.cumsum(lengths)])
    used = int(sample_cu[-1])
    assert 0 < used <= seq_length, (used, seq_length)
    bounds = sample_cu if resets else np.array([0, used])
    padding = 0 if open_end else seq_length - used
    if open_end:
        cu_seqlens = np.append(bounds[:-1], seq_length)
    else:
        cu_seqlens = np.append(bounds, seq_length) if padding else bounds
    tokens = np.full(seq_length, pad_id, dtype=np.int64)
    labels = np.full(seq_length, IGNORE, dtype=np.int64)
    tokens[:used] = np.concatenate([sample.tokens_T for sample in samples])
    labels[:used] = np.concatenate([sample.labels_T for sample in samples])
    starts = np.concatenate([sample.tile_starts_N + offset for sample, offset in zip(samples, sample_cu)])

    cp_plan = make_cp_plan(cu_seqlens, ring_size, padding=padding, node_size=node_size)
    if ring_size > 1:
        cp_plan.steps(group_rank * ring_size // group_size)  # worked out here, in the loader's worker, rather than while the device waits
    tile_range = tile_owner(len(starts), group_size)[group_rank] if decode else range(0)
    tiles, failures = decode_tiles(samples, tile_range, tile_size, decoding or DecodeSettings())
    failed_ids = {failure.sample_id for failure in failures}
    batch = PackedBatch(
        tokens_T=torch.from_numpy(tokens),
        labels_T=torch.from_numpy(labels),
        weights_T=torch.from_numpy(_weights(labels, sample_cu, loss_weighting)),
        positions_T=torch.from_numpy(document_positions(cu_seqlens)),
        cu_seqlens=torch.from_numpy(cu_seqlens.astype(np.int64)),
        sample_cu=torch.from_numpy(sample_cu),
        sample_ids=torch.tensor([sample.sample_id for sample in samples], dtype=torch.int64),
        source_ids=torch.tensor([sample.source_id for sample in samples], dtype=torch.int64),
        tile_first_token=torch.from_numpy(starts),
        context_ids=context_ids,
        tiles_NCHW=tiles,
        tile_range=tile_range,
        failed=torch.zeros(len(samples), dtype=torch.bool),
        failures=tuple(failures),
        cp_plan=cp_plan,
    )
    if not failures:
        return batch
    return batch.with_failed(torch.tensor([sample.sample_id in failed_ids for sample in samples]))


def _weights(labels_S: np.ndarray, sample_cu: np.ndarray, loss_weighting: str) -> np.ndarray:
    """Share of each token in the loss: 1 for a supervised one, or 1 / the supervised tokens of its sample. float32[S]."""
    supervised = labels_S != IGNORE
    weights = supervised.astype(np.float32)
    if loss_weighting == "sample":
        counts = np.add.reduceat(supervised, sample_cu[:-1], dtype=np.int64)
        weights[: sample_cu[-1]] /= np.repeat(np.maximum(counts, 1), np.diff(sample_cu))
    return weights


def decode_tiles(
    samples: Sequence[EncodedSample], wanted: range, tile_size: int, decoding: DecodeSettings
) -> tuple[torch.Tensor, list[MediaFailure]]:
    """Some of the tiles of some samples, counted over all of them, and what could not be decoded: blank in the tiles.

    Args:
        samples: whose tiles.
        wanted: which tiles.
        tile_size: side of a tile, in pixels.
        decoding: caps and choices.

    Returns:
        uint8[len(wanted), 3, tile_size, tile_size], and why media failed.
    """
    tiles_NCHW = _empty_tiles(len(wanted), tile_size)
    tiles = tiles_NCHW.numpy()
    jobs, owners = [], []
    first = 0
    for sample in samples:
        for medium in sample.media:
            own = range(max(first, wanted.start) - first, min(first + medium.num_tiles, wanted.stop) - first)
            if own:
                into = tiles[first + own.start - wanted.start : first + own.stop - wanted.start]
                jobs.append(_job(medium, own, sample.root, into))
                owners.append((sample, into))
            first += medium.num_tiles
    failures = []
    for (sample, into), error in zip(owners, get_decoder(decoding).run(jobs) if jobs else ()):
        if error is not None:
            into[:] = blank_tile(tile_size)
            failures.append(MediaFailure(sample.source, sample.sample_id, error.path, error.reason))
    return tiles_NCHW, failures


def _job(medium: Medium, own: range, root: str, into: np.ndarray) -> Job:
    if medium.grid:
        return Job.picture(medium.path, root, medium.grid, own, into)
    assert medium.header is not None
    return Job.video(medium.path, root, medium.header, list(medium.numbers[own.start : own.stop]), into)


def _empty_tiles(count: int, tile_size: int) -> torch.Tensor:
    """uint8[count, 3, H, W]; in a loader's worker in shared memory, where it would be copied to later: a film has gigabytes."""
    shape = (count, 3, tile_size, tile_size)
    if not count or torch.utils.data.get_worker_info() is None:
        return torch.empty(shape, dtype=torch.uint8)
    shared = torch.empty(0, dtype=torch.uint8)
    storage = shared._typed_storage()._new_shared(count * 3 * tile_size * tile_size, device="cpu")
    return shared.new(storage).view(shape)
