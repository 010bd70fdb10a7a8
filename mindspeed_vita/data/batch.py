"""One pack as the model receives it. Shape legend: S seq_length, D attention documents, n samples, N tiles of the whole pack."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from mindspeed_vita.hf.tiling import BACKGROUND
from mindspeed_vita.sharding import CPPlan, TileRoute, tile_routes

IGNORE = -100
"""Label of a token that is not supervised."""


@dataclass(frozen=True)
class MediaFailure:
    """A picture or video that could not be decoded."""

    source: str
    sample_id: int
    path: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class PackedBatch:
    """One pack: the same on every tensor, context and pipeline rank but for its tiles and what failed while decoding them."""

    tokens_T: torch.Tensor
    """int64[S], tokens of all samples, then padding."""
    labels_T: torch.Tensor
    """int64[S], the next token of the same sample where that is supervised, otherwise -100: shifted already."""
    weights_T: torch.Tensor
    """float32[S], share of a token in the loss, 0 where labels_T is none; over a sample they add up to its supervised tokens, or to 1."""
    positions_T: torch.Tensor
    """int64[S], from 0 in each sample (resets on) or over all samples (off), and from 0 in the padding."""
    cu_seqlens: torch.Tensor
    """int64[D + 1], bounds of documents: each sample (resets on) or all of them (off), then the padding, if any, as one document.
    The plan cuts that padding further: CPPlan.piece_bounds."""
    sample_cu: torch.Tensor
    """int64[n + 1], bounds of the samples, padding left out; kept with resets off too."""
    sample_ids: torch.Tensor
    """int64[n], rows of the sample index."""
    source_ids: torch.Tensor
    """int64[n], entries of the mixture."""
    tile_first_token: torch.Tensor
    """int64[N], pack position of each tile's first context token."""
    context_ids: tuple[int, ...]
    """Tokens whose embeddings vision rows replace. tokens_T holds none but those of the N tiles."""
    tiles_NCHW: torch.Tensor
    """uint8[len(tile_range), 3, H, W], the tiles this rank encodes."""
    tile_range: range
    """Which of the N tiles those are."""
    failed: torch.Tensor
    """bool[n], samples that lost a tile; their labels are -100 here."""
    failures: tuple[MediaFailure, ...]
    """Why they failed, as far as this rank knows."""
    cp_plan: CPPlan
    """Token owners under context parallelism."""
    route: TileRoute | None = None
    """This rank's exchange of vision rows, once planned (with_route)."""

    @property
    def loss_count(self) -> int:
        """What this pack adds to the number that the loss is divided by: supervised tokens, or supervised samples. Never rounded away."""
        return round(float(self.weights_T.sum(dtype=torch.float64)))

    def with_route(self, *, tokens_per_tile: int, tp_size: int, ulysses: int, group_rank: int, tensor: bool) -> PackedBatch:
        """The pack with this rank's exchange of vision rows planned: 0.1 s for 1M tokens, so a loader's worker does it.

        Args:
            tokens_per_tile, tp_size, group_rank, tensor: see sharding.tile_routes.
            ulysses: context-parallel ranks that make up one ring rank.
        """
        if self.route is not None or not len(self.tile_first_token):
            return self
        shared, first = self.cp_plan.shared_by(ulysses), self.tile_first_token.numpy()
        return replace(self, route=tile_routes(shared, first, tokens_per_tile, tp_size, group_rank, tensor=tensor))

    def with_failed(self, failed: torch.Tensor) -> PackedBatch:
        """The pack with more samples taken out of the loss; token and tile counts stay as they are.

        All tiles of a failed sample become blank, so that the pack is the same however its tiles are shared out.

        Args:
            failed: bool[n], for instance the maximum over the ranks that share the pack.
        """
        failed = failed.to(torch.bool) | self.failed
        if torch.equal(failed, self.failed):
            return self
        tokens = torch.zeros_like(self.tokens_T, dtype=torch.bool)
        tokens[: int(self.sample_cu[-1])] = failed.repeat_interleave(self.sample_cu.diff())
        own = self.tile_first_token[self.tile_range.start : self.tile_range.stop]
        blank = torch.tensor(BACKGROUND, dtype=torch.uint8).view(1, 3, 1, 1)
        return replace(
            self,
            failed=failed,
            labels_T=self.labels_T.masked_fill(tokens, IGNORE),
            weights_T=self.weights_T.masked_fill(tokens, 0.0),
            tiles_NCHW=torch.where(tokens[own].view(-1, 1, 1, 1), blank, self.tiles_NCHW),
        )
