"""The vision rows of a step's prefill chunks: tiles are decoded and encoded in a pipeline of bounded depth, shared out over tp x cp.

Only tiles whose tokens a chunk computes are decoded, so a film is never in memory as tiles. A tile that two chunks share is decoded twice.
The digest of each tile is taken from the very pixels that are encoded.
Shapes: N tiles, R vision rows, H hidden.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from mindspeed_vita.data.assemble import EncodedSample, decode_tiles
from mindspeed_vita.data.batch import MediaFailure
from mindspeed_vita.data.media.limits import DecodeSettings
from mindspeed_vita.inference.block_names import tile_digest
from mindspeed_vita.inference.plans import PrefillPlan
from mindspeed_vita.models.inputs import VisionRoute
from mindspeed_vita.parallel.layout import ParallelLayout
from mindspeed_vita.sharding import tile_owner

if TYPE_CHECKING:
    from mindspeed_vita.models.vita import VitaModel


@dataclass(frozen=True)
class ChunkTiles:
    """The tiles that one chunk needs."""

    sequence: int
    """Whose tiles."""
    prompt: EncodedSample
    """The sequence's."""
    wanted: range
    """Which of the prompt's tiles."""
    first_rows: np.ndarray
    """int64[len(wanted)], where each tile's first row stands among the tokens of all chunks, laid one after the other; may lie outside
    the chunk, where the tile is cut by its edge."""
    bounds: tuple[int, int]
    """Where the chunk lies among those tokens."""
    factors: np.ndarray
    """int64[len(wanted)], by how much each tile is pooled."""


def tiles_of(plan: PrefillPlan, prompts: Sequence[EncodedSample], tokens_per_tile: int) -> list[ChunkTiles]:
    """The tiles that the chunks of a plan need, in the order of the chunks.

    Args:
        plan: of any rank.
        prompts: of each chunk's sequence.
        tokens_per_tile: rows of a tile that is not pooled.
    """
    found, base = [], 0
    for chunk, prompt in zip(plan.chunks, prompts):
        starts, factors = prompt.tile_starts_N, prompt.factors_N
        first = int(np.searchsorted(starts + tokens_per_tile // factors**2, chunk.start, side="right"))
        last = int(np.searchsorted(starts, chunk.stop))
        bounds = base, base + chunk.stop - chunk.start
        if last > first:
            first_rows = starts[first:last] - chunk.start + base
            found.append(ChunkTiles(chunk.sequence, prompt, range(first, last), first_rows, bounds, factors[first:last]))
        base = bounds[1]
    return found


@dataclass
class Seen:
    """What decoding found out."""

    failures: list[tuple[int, MediaFailure]] = field(default_factory=list)
    """Media that could not be decoded, with their sequence."""
    digests: dict[int, dict[int, bytes]] = field(default_factory=dict)
    """tile_digest by sequence and by the tile's number in the prompt. Tiles that were decoded together with a failed one have none."""


class TileFeed:
    """Encodes tiles for one rank of the tp x cp group.

    Args:
        model: with the tower.
        layout: this rank's place.
        tile_size: side of a tile, in pixels.
        tokens_per_tile: rows of a tile that is not pooled.
        decoding: caps and choices of decoding.
        tiles_in_flight: most tiles that this rank holds as pixels at a time: half of them are decoded while the other half is encoded.
        pixels: settings_text of what happens to pixels before the tower sees them; part of the tiles' digests.
    """

    def __init__(
        self,
        model: VitaModel,
        layout: ParallelLayout,
        *,
        tile_size: int,
        tokens_per_tile: int,
        decoding: DecodeSettings,
        tiles_in_flight: int,
        pixels: str = "",
    ) -> None:
        if tiles_in_flight < 2:
            raise ValueError(f"tiles_in_flight is {tiles_in_flight}; expected at least 2: one is encoded while the next is decoded")
        self.model, self.layout, self.decoding = model, layout, decoding
        self.tile_size, self.tokens_per_tile, self.at_once, self.pixels = tile_size, tokens_per_tile, tiles_in_flight // 2, pixels

    def rows(
        self, plan: PrefillPlan, chunks: Sequence[ChunkTiles], device: torch.device
    ) -> tuple[torch.Tensor, VisionRoute, Seen]:
        """Rows for this rank's tokens, where they belong, and what was found out on this rank. Collective over tp x cp.

        Args:
            plan: this rank's.
            chunks: what tiles_of returns.
            device: where the model is.
        """
        group = self.layout.tile_group_size
        factors = np.concatenate([chunk.factors for chunk in chunks])
        own = tile_owner(len(factors), group)[self.layout.tile_rank]
        encoded, done, seen = [], own.start, Seen()
        for tiles in self._decoded(chunks, own, seen):
            rows_RH = self.model.tile_rows(tiles.to(device))
            encoded.append(pooled_rows(rows_RH, factors[done : done + len(tiles)]))
            done += len(tiles)
        rows_RH = torch.cat(encoded) if encoded else self.model.tile_rows(self._no_tiles().to(device))
        route = self._route(plan, chunks, device)
        return self.model.exchange(rows_RH, route), route, seen

    def _decoded(self, chunks: Sequence[ChunkTiles], own: range, seen: Seen) -> Iterator[torch.Tensor]:
        """This rank's tiles in order, a few at a time; the next ones are decoded meanwhile."""
        jobs, base = [], 0
        for chunk in chunks:
            here = range(max(own.start, base), min(own.stop, base + len(chunk.wanted)))
            for start in range(here.start, here.stop, self.at_once):
                stop = min(start + self.at_once, here.stop)
                jobs.append((chunk.sequence, chunk.prompt, chunk.wanted[start - base : stop - base]))
            base += len(chunk.wanted)
        if not jobs:
            return
        with ThreadPoolExecutor(1, thread_name_prefix="tiles") as pool:
            coming = pool.submit(self._decode, *jobs[0][1:])
            for place, (sequence, _, wanted) in enumerate(jobs):
                tiles, failed, digests = coming.result()
                if place + 1 < len(jobs):
                    coming = pool.submit(self._decode, *jobs[place + 1][1:])
                seen.failures += [(sequence, failure) for failure in failed]
                seen.digests.setdefault(sequence, {}).update(zip(wanted, digests))
                yield tiles

    def _decode(self, prompt: EncodedSample, wanted: range) -> tuple[torch.Tensor, list[MediaFailure], list[bytes]]:
        tiles, failed = decode_tiles([prompt], wanted, self.tile_size, self.decoding)
        return tiles, failed, [] if failed else [tile_digest(tile, self.pixels) for tile in tiles.numpy()]

    def _no_tiles(self) -> torch.Tensor:
        return torch.empty(0, 3, self.tile_size, self.tile_size, dtype=torch.uint8)

    def _route(self, plan: PrefillPlan, chunks: Sequence[ChunkTiles], device: torch.device) -> VisionRoute:
        """Every row goes to all tensor-parallel ranks of the rank that computes its token: without sequence parallelism each needs it."""
        rows, real, lengths = [], [], []
        for chunk in chunks:
            lengths.append(self.tokens_per_tile // chunk.factors**2)
            tokens = np.concatenate([np.arange(first, first + length) for first, length in zip(chunk.first_rows, lengths[-1])])
            rows.append(tokens)
            real.append((tokens >= chunk.bounds[0]) & (tokens < chunk.bounds[1]))
        tokens, inside = np.concatenate(rows), np.concatenate(real)
        layout, group = self.layout, self.layout.tile_group_size
        piece = np.searchsorted(plan.ring.edges, np.where(inside, tokens, 0), side="right") - 1
        owner = np.where(inside, plan.ring.owners[piece], -1)
        lengths_N = np.concatenate(lengths)
        counts = [int(lengths_N[tiles.start : tiles.stop].sum()) for tiles in tile_owner(len(lengths_N), group)]
        encoder = np.repeat(np.arange(group), counts)
        mine = np.flatnonzero(encoder == layout.tile_rank)
        first = int(mine[0]) if len(mine) else 0
        send = [mine[owner[mine] == other // layout.tp_size] - first for other in range(group)]
        wanted = np.flatnonzero(owner == layout.cp_rank)
        return VisionRoute(
            send_rows=torch.from_numpy(np.concatenate(send)).to(device),
            send_counts=tuple(map(len, send)),
            recv_counts=tuple(np.bincount(encoder[wanted], minlength=group).tolist()),
            targets=torch.from_numpy(np.searchsorted(plan.places, tokens[wanted])).to(device),
        )


def pooled_rows(rows_RH: torch.Tensor, factors: np.ndarray) -> torch.Tensor:
    """The rows of some tiles, those of each tile averaged over squares of factor x factor of its grid, in row order.

    Args:
        rows_RH: all rows of the tiles, as many for each.
        factors: int64[N], of each tile.
    """
    if (factors == 1).all():
        return rows_RH
    rows_NLH = rows_RH.unflatten(0, (len(factors), -1))
    side = math.isqrt(rows_NLH.shape[1])
    pooled = []
    for rows_LH, factor in zip(rows_NLH, factors.tolist()):
        squares = rows_LH.unflatten(0, (side // factor, factor, side // factor, factor))
        pooled.append(squares.mean((1, 3)).flatten(0, 1) if factor > 1 else rows_LH)
    return torch.cat(pooled)


def without_labels(sample: EncodedSample) -> EncodedSample:
    """A prompt without what only training needs."""
    return replace(sample, labels_T=sample.labels_T[:0])
