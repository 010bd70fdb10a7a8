"""Names of cache blocks: equal names mean equal keys and values, whoever asks.

A name is a SHA-256 over the name of the block before, this block's token ids, and the digests of the tiles whose rows replace some of these
tokens. The chain's root is the identity of the model.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Optional

import numpy as np

_TILE_PART = struct.Struct("<qqq32s")


@dataclass(frozen=True)
class TileSpan:
    """Tokens [start, stop) of a sequence that the rows of one tile replace."""

    start: int
    """First token."""
    stop: int
    """One past the last token."""
    digest: Optional[bytes]
    """pooled_digest of the tile; None: it was not decoded yet."""
    promised: bytes = b""
    """Where not all tiles of the medium are known: what stands for this one among requests about the same file. 32 bytes."""


def settings_text(settings: Mapping[str, Any]) -> str:
    """Settings as one text, the same for equal settings in any order.

    Raises:
        TypeError: a value that JSON cannot hold.
    """
    return json.dumps(settings, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def tile_digest(pixels: np.ndarray, settings: str) -> bytes:
    """The digest of one tile: 32 bytes.

    Args:
        pixels: the tile, of any shape and type.
        settings: settings_text of what happens to the pixels before the tower sees them, such as normalization.
    """
    held = np.ascontiguousarray(pixels)
    digest = hashlib.sha256(f"{held.dtype.str} {held.shape} {settings}\n".encode())
    digest.update(held.data)
    return digest.digest()


def pooled_digest(digest: bytes, factor: int) -> bytes:
    """The digest of a tile whose rows are pooled by a factor: 32 bytes, that of the tile itself for factor 1."""
    return digest if factor == 1 else hashlib.sha256(digest + f"pooled by {factor}".encode()).digest()


def root_name(identity: str) -> bytes:
    """The root of the chain for one model.

    Args:
        identity: what keys and values depend on besides tokens and pixels: the weights, the precision, the rotary scaling.
    """
    return hashlib.sha256(b"mindspeed_vita cache\n" + identity.encode()).digest()


class BlockNames:
    """The names of one sequence's full blocks, in order. They grow with the sequence, and end before a tile that is not known.

    Args:
        root: see root_name.
        tokens: the prompt's token ids.
        tiles: the prompt's tiles, ascending and without overlap.
        block_size: tokens of a block.

    Raises:
        ValueError: a tile that is not inside the prompt, overlaps another, or has a digest that is no SHA-256.
    """

    def __init__(self, root: bytes, tokens: Sequence[int] | np.ndarray, tiles: Sequence[TileSpan], block_size: int) -> None:
        self._block_size, self._tiles, self._next_tile = block_size, list(tiles), 0
        self.names: list[bytes] = []
        self._last, self._rest = root, np.empty(0, dtype=np.int64)
        at = 0
        for tile in tiles:
            where = f"the tile at tokens [{tile.start}, {tile.stop})"
            if not at <= tile.start < tile.stop <= len(tokens):
                raise ValueError(f"{where} does not fit: expected one after the tile before, which ends at {at}, in {len(tokens)} tokens")
            if tile.digest is not None and len(tile.digest) != hashlib.sha256().digest_size:
                raise ValueError(f"{where} has a digest of {len(tile.digest)} bytes; expected tile_digest's 32")
            at = tile.stop
        self.extend(tokens)

    def extend(self, tokens: Sequence[int] | np.ndarray) -> None:
        """Goes on with the sequence's next tokens; every block that becomes full gets its name."""
        self._rest = np.concatenate([self._rest, np.asarray(tokens, dtype=np.int64)])
        self._name_full()

    def learn(self, digests: Mapping[int, bytes]) -> None:
        """Takes the pooled digests of tiles that were not known, by their numbers, and names what can be named now."""
        for number, digest in digests.items():
            self._tiles[number] = replace(self._tiles[number], digest=digest)
        self._name_full()

    def _name_full(self) -> None:
        done = 0
        while done + self._block_size <= len(self._rest):
            parts = self._tile_parts()
            if parts is None:
                break
            block = self._rest[done : done + self._block_size]
            self._last = hashlib.sha256(self._last + block.astype("<i8").tobytes() + parts).digest()
            self.names.append(self._last)
            done += self._block_size
        self._rest = self._rest[done:]

    def _tile_parts(self) -> Optional[bytes]:
        """Which part of which tile is at which place of the next block; None where one of them is not known."""
        start = len(self.names) * self._block_size
        stop = start + self._block_size
        parts, next_tile = [], self._next_tile
        while next_tile < len(self._tiles) and self._tiles[next_tile].start < stop:
            tile = self._tiles[next_tile]
            if tile.digest is None:
                return None
            first, last = max(start, tile.start), min(stop, tile.stop)
            parts.append(_TILE_PART.pack(first - start, first - tile.start, last - first, tile.digest))
            if tile.stop > stop:
                break
            next_tile += 1
        self._next_tile = next_tile
        return b"".join(parts)
