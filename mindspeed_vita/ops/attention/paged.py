"""Attention over cached keys: the call of Backend.paged_forward, and the way to serve it that every backend has.

Keys and values lie in blocks of a cache. All keys of a sequence precede its queries, or are those of its one new query itself, so
nothing is masked. One operation serves decoding (one query per sequence) and queries that travel to another rank's keys.
Shapes: T query tokens of all sequences, N query heads, G key heads, D width of a head, B blocks, S tokens of a block, n sequences.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from mindspeed_vita.ops.attention.call import Blocks


@dataclass(frozen=True, eq=False)
class PagedSequences:
    """Sequences that have keys in a cache. Every layer of a step asks for the same ones, so what is moved to a device is kept.

    Attributes:
        query_ends: int64[n], one past the last query of each sequence; its queries follow those of the sequence before.
        tables: for each sequence int64[], the numbers of its blocks, in the order of its tokens.
        lengths: int64[n], keys of each sequence, at least 1; only its last block may hold fewer than S.
        device: where the cache is.
    """

    query_ends: np.ndarray
    tables: tuple[np.ndarray, ...]
    lengths: np.ndarray
    device: torch.device

    def __post_init__(self) -> None:
        assert len(self.query_ends) == len(self.tables) == len(self.lengths) and (self.lengths > 0).all()

    @cached_property
    def query_counts(self) -> np.ndarray:
        """int64[n], queries of each sequence."""
        return np.diff(self.query_ends, prepend=0)

    @cached_property
    def places(self) -> list[tuple[int, int]]:
        """Start and stop of each sequence's queries."""
        return list(zip((self.query_ends - self.query_counts).tolist(), self.query_ends.tolist()))

    @cached_property
    def block_table(self) -> torch.Tensor:
        """int32[n, most blocks] on the device; entries past a sequence's last block are 0."""
        table = np.zeros((len(self.tables), max(len(row) for row in self.tables)), dtype=np.int32)
        for place, row in enumerate(self.tables):
            table[place, : len(row)] = row
        return torch.from_numpy(table).to(self.device)

    @cached_property
    def lengths_on_device(self) -> torch.Tensor:
        """int32[n]."""
        return torch.from_numpy(self.lengths.astype(np.int32)).to(self.device)

    @cached_property
    def segments(self) -> np.ndarray:
        """int64[n, 4], query start and stop, start and stop among the keys of all sequences, one after the other."""
        key_ends = np.cumsum(self.lengths)
        return np.stack([self.query_ends - self.query_counts, self.query_ends, key_ends - self.lengths, key_ends], axis=1)

    def key_rows(self, block_size: int) -> torch.Tensor:
        """int64[sum of lengths] on the device: where the keys of all sequences lie in the cache, counted in tokens."""
        if block_size not in self._rows:
            places = np.arange(block_size)
            rows = [(table[:, None] * block_size + places).reshape(-1)[:length] for table, length in zip(self.tables, self.lengths)]
            self._rows[block_size] = torch.from_numpy(np.concatenate(rows)).to(self.device)
        return self._rows[block_size]

    @cached_property
    def _rows(self) -> dict[int, torch.Tensor]:
        return {}


@dataclass(frozen=True, kw_only=True)
class Paged:
    """One call: some sequences' queries over their keys in one layer's cache."""

    q_TND: torch.Tensor
    """Queries, sequence after sequence."""
    k_BSGD: torch.Tensor
    """The layer's cached keys, rotated."""
    v_BSGD: torch.Tensor
    """The layer's cached values."""
    sequences: PagedSequences
    """Whose queries those are, and where their keys are."""
    scale: float
    """Factor on the scores."""


def gathered(paged: Paged) -> Blocks:
    """The same call over a copy of the keys that lies sequence after sequence: any backend's blocks_forward serves it."""
    rows = paged.sequences.key_rows(paged.k_BSGD.shape[1])
    keys, values = (x.flatten(0, 1).index_select(0, rows) for x in (paged.k_BSGD, paged.v_BSGD))
    return Blocks(
        q_TND=paged.q_TND, k_SGD=keys, v_SGD=values, segments=paged.sequences.segments, causal=False, scale=paged.scale
    )
