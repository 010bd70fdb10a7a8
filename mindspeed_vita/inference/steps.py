"""What the scheduler decides for one step of the model: plain integers, the same on every rank, and their form for the broadcast."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np

BLOCK_SIZE = 256
"""Tokens of a block, by default."""
_RANK_SHIFT = 40
"""A block travels as rank << 40 | block."""


class BlockRef(NamedTuple):
    """Where one logical block of a sequence is: which context-parallel rank holds it, and its number in that rank's pool."""

    rank: int
    block: int


@dataclass(frozen=True)
class PrefillChunk:
    """Tokens [start, stop) of one sequence, to be computed in one go over the cached tokens before them."""

    sequence: int
    """The sequence's number, never used twice."""
    start: int
    """First token; a multiple of the block size."""
    stop: int
    """One past the last token; a multiple of the block size unless `last`."""
    table: tuple[BlockRef, ...]
    """The blocks of tokens [0, stop): entry i holds tokens [i * block size, (i + 1) * block size)."""
    answer: tuple[int, ...] = ()
    """The chunk's last tokens, as far as they are part of the answer: a preempted sequence computes them again. The tokens before them are
    the prompt's."""
    last: bool = True
    """Whether nothing of the sequence remains to be computed after it. Then the logits of token stop - 1 are wanted."""


@dataclass(frozen=True)
class DecodeRow:
    """One new token of one sequence."""

    sequence: int
    """The sequence's number."""
    position: int
    """The token's place in the sequence, where its key and value are written."""
    token: int
    """The token's id."""
    table: tuple[BlockRef, ...]
    """The blocks of tokens [0, position]."""


@dataclass(frozen=True)
class Step:
    """One step of the model: some prefill chunks and some decode rows, at most one of them per sequence."""

    prefill: tuple[PrefillChunk, ...] = ()
    """In the order of arrival."""
    decode: tuple[DecodeRow, ...] = ()
    """In the order of arrival."""
    ended: tuple[int, ...] = ()
    """Sequences that ended since the step before: what a rank keeps for them (prompt, tiles) can go. Their blocks may belong to others in
    this very step."""

    @property
    def sampled(self) -> tuple[int, ...]:
        """The sequences that get a token from this step, in the order of the logits' rows: last prefill chunks, then decode rows."""
        return (*(chunk.sequence for chunk in self.prefill if chunk.last), *(row.sequence for row in self.decode))

    @property
    def num_tokens(self) -> int:
        """Tokens that the step computes."""
        return sum(chunk.stop - chunk.start for chunk in self.prefill) + len(self.decode)

    @property
    def described(self) -> str:
        """What the step is, in words."""
        parts = [f"tokens {chunk.start:,} to {chunk.stop:,} of request {chunk.sequence}" for chunk in self.prefill[:3]]
        if len(self.prefill) > 3:
            parts.append(f"chunks of {len(self.prefill) - 3} more requests")
        if self.decode:
            parts.append(f"the next token of {len(self.decode)} requests, from request {self.decode[0].sequence} on")
        return ", ".join(parts) or "nothing"

    @property
    def empty(self) -> bool:
        """Whether there is nothing to compute."""
        return not self.prefill and not self.decode


def encode_step(step: Step) -> np.ndarray:
    """A step as int64 numbers. The first one is how many there are."""
    flat = [0, len(step.prefill), len(step.decode), len(step.ended), *step.ended]
    for chunk in step.prefill:
        flat += (chunk.sequence, chunk.start, chunk.stop, chunk.last, len(chunk.answer), len(chunk.table))
        flat += chunk.answer
        flat += _pack(chunk.table)
    for row in step.decode:
        flat += (row.sequence, row.position, row.token, len(row.table))
        flat += _pack(row.table)
    flat[0] = len(flat)
    return np.array(flat, dtype=np.int64)


def decode_step(numbers: np.ndarray) -> Step:
    """The step that encode_step made the numbers from. What stands after them is ignored, so a buffer may be longer than the step."""
    flat = numbers.tolist()
    assert flat[0] <= len(flat), f"a step of {flat[0]} numbers came as {len(flat)}"
    num_prefill, num_decode, num_ended = flat[1:4]
    place = 4 + num_ended
    ended = tuple(flat[4:place])
    prefill, decode = [], []
    for _ in range(num_prefill):
        sequence, start, stop, last, num_answer, num_blocks = flat[place : place + 6]
        answer_at, table_at = place + 6, place + 6 + num_answer
        place = table_at + num_blocks
        answer, table = tuple(flat[answer_at:table_at]), _unpack(flat[table_at:place])
        prefill.append(PrefillChunk(sequence, start, stop, table, answer, bool(last)))
    for _ in range(num_decode):
        sequence, position, token, num_blocks = flat[place : place + 4]
        table = _unpack(flat[place + 4 : place + 4 + num_blocks])
        place += 4 + num_blocks
        decode.append(DecodeRow(sequence, position, token, table))
    return Step(tuple(prefill), tuple(decode), ended)


def _pack(table: Iterable[BlockRef]) -> list[int]:
    return [rank << _RANK_SHIFT | block for rank, block in table]


def _unpack(packed: Iterable[int]) -> tuple[BlockRef, ...]:
    return tuple(map(_block_of, packed))


@lru_cache(maxsize=1 << 20)
def _block_of(packed: int) -> BlockRef:
    """Kept, because every step names the same blocks again: making them anew takes most of the time of decode_step."""
    return BlockRef(packed >> _RANK_SHIFT, packed & ((1 << _RANK_SHIFT) - 1))
