"""What both sides compute: text and two pictures of one tile each, drawn from a fixed seed in the model's own sizes.

Shapes: T tokens, N tiles, R places of vision rows.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import torch

from mindspeed_vita.config import ModelConfig

NUM_TILES = 2
_TEXTS = (7, 5, 9)
"""Tokens of text before, between and behind the pictures."""
_SEED = 20


@dataclass(frozen=True, kw_only=True)
class Probe:
    """One document."""

    tokens_T: torch.Tensor
    """int64 token ids. Those at `places_R` stand for rows of the pictures; each side writes its own context token there."""
    places_R: torch.Tensor
    """int64, the tokens that rows of the pictures replace, picture by picture."""
    tiles_NCHW: torch.Tensor
    """uint8 pixels."""

    def with_context(self, token: int) -> torch.Tensor:
        """Token ids [T] with a context token at the places of the pictures."""
        return self.tokens_T.index_fill(0, self.places_R, token)


def make_probe(model: ModelConfig, avoid: Collection[int]) -> Probe:
    """The probe for an architecture.

    Args:
        model: size of the vocabulary, of a tile, and tokens of a tile.
        avoid: token ids that mean a picture to one of the sides.
    """
    generator = torch.Generator().manual_seed(_SEED)
    avoided = set(avoid)
    words = torch.tensor([token for token in range(model.language.vocab_size) if token not in avoided])
    parts, places, length = [], [], 0
    for number, size in enumerate(_TEXTS):
        parts.append(words[torch.randint(len(words), (size,), generator=generator)])
        length += size
        if number < NUM_TILES:
            parts.append(torch.zeros(model.tokens_per_tile, dtype=torch.int64))
            places.append(torch.arange(length, length + model.tokens_per_tile))
            length += model.tokens_per_tile
    side = model.vision.tile_size
    tiles_NCHW = torch.randint(256, (NUM_TILES, 3, side, side), generator=generator, dtype=torch.uint8)
    return Probe(tokens_T=torch.cat(parts), places_R=torch.cat(places), tiles_NCHW=tiles_NCHW)
