"""Packs for a trace: the length, tiles and supervised tokens of a recipe's packs, without data."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from mindspeed_vita import sharding
from mindspeed_vita.config import Recipe
from mindspeed_vita.data.batch import IGNORE, PackedBatch
from mindspeed_vita.data.positions import document_positions
from mindspeed_vita.parallel.layout import ParallelLayout

_CONTEXT_TOKEN = 0
_TEXT_TOKEN = 1
_MARKERS = 2
"""Tokens around a tile's rows: its start and its end."""


@dataclass(frozen=True, kw_only=True)
class PackContent:
    """What fills a pack. Each share is of the pack's tokens."""

    vision: float = 0.9
    """Share of tiles, with the two markers around each."""
    supervised: float = 0.1
    """Share of supervised tokens. They stand at the end of each document, where no tile is."""
    documents: int = 8
    """Documents of the same length, if the recipe isolates samples (data.resets). Otherwise the pack is one document."""

    def check(self) -> None:
        """Refuses what does not fit into a pack.

        Raises:
            ValueError: shares that are none, or that are more than a pack together; less than one document.
        """
        if not (0 <= self.vision <= 1 and 0 <= self.supervised <= 1 and self.vision + self.supervised <= 1):
            raise ValueError(
                f"the share of vision tokens is {self.vision} and that of supervised tokens {self.supervised}; "
                "expected shares from 0 to 1 that add up to at most 1"
            )
        if self.documents < 1:
            raise ValueError(f"a pack has {self.documents} documents; expected at least 1")


def make_pack(recipe: Recipe, layout: ParallelLayout, content: PackContent) -> PackedBatch:
    """A pack as the loader gives it to one rank. Tiles are blank.

    Args:
        recipe: length, tiles and resets of its packs.
        layout: the rank.
        content: what fills the pack.
    """
    length, rows = recipe.data.seq_length, recipe.model.tokens_per_tile
    documents = min(content.documents, length // 2) if recipe.data.resets else 1
    bounds = np.linspace(0, length, documents + 1).astype(np.int64)
    tile_first_token, supervised = tile_places(bounds, rows, content.vision), np.zeros(length, dtype=bool)
    for start, stop in zip(bounds[:-1], bounds[1:]):
        supervised[stop - int(content.supervised * (stop - start)) : stop] = True
    tokens = np.full(length, _TEXT_TOKEN)
    tokens[(tile_first_token[:, None] + np.arange(rows)).ravel()] = _CONTEXT_TOKEN
    labels = np.where(supervised, _TEXT_TOKEN, IGNORE)
    owned = sharding.tile_owner(len(tile_first_token), layout.tile_group_size)[layout.tile_rank]
    size = recipe.model.vision.tile_size
    return PackedBatch(
        tokens_T=torch.from_numpy(tokens),
        labels_T=torch.from_numpy(labels),
        weights_T=torch.from_numpy(supervised.astype(np.float32)),
        positions_T=torch.from_numpy(document_positions(bounds)),
        cu_seqlens=torch.from_numpy(bounds),
        sample_cu=torch.from_numpy(bounds),
        sample_ids=torch.arange(documents),
        source_ids=torch.zeros(documents, dtype=torch.int64),
        tile_first_token=torch.from_numpy(tile_first_token),
        context_ids=(_CONTEXT_TOKEN,),
        tiles_NCHW=torch.zeros(len(owned) if layout.is_first_stage else 0, 3, size, size, dtype=torch.uint8),
        tile_range=owned if layout.is_first_stage else range(0),
        failed=torch.zeros(documents, dtype=torch.bool),
        failures=(),
        cp_plan=sharding.make_cp_plan(bounds, layout.ring_size, node_size=layout.node_size),
    )


def tile_places(bounds: np.ndarray, rows: int, share: float) -> np.ndarray:
    """The first row of each tile: int64. Tiles stand at the start of each document.

    Args:
        bounds: int64[documents + 1], where documents start and stop.
        rows: tokens of a tile.
        share: of each document's tokens that are tiles and their markers.
    """
    found = []
    for start, stop in zip(bounds[:-1], bounds[1:]):
        tiles = int(share * (stop - start)) // (rows + _MARKERS)
        found.append(start + 1 + np.arange(tiles) * (rows + _MARKERS))
    return np.concatenate(found)
