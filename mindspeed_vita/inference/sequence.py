"""A sequence as the scheduler sees it: what was asked, how far it has come, and how it ended. Token ids only."""

from __future__ import annotations

from collections.abc import Sequence as Several
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from mindspeed_vita.inference.block_names import BlockNames, TileSpan
from mindspeed_vita.inference.steps import BlockRef

FinishReason = Literal["stop", "length", "cancelled", "error"]
"""A stop token or stop string; as many tokens as allowed; cancelled by who asked; an error, of which a time-out is one."""


@dataclass(frozen=True, kw_only=True)
class NewSequence:
    """What is asked of the scheduler."""

    tokens: Several[int] | np.ndarray
    """The prompt's token ids, at least one."""
    tiles: tuple[TileSpan, ...] = ()
    """The prompt's tiles, ascending."""
    max_tokens: int
    """Tokens of the answer at most."""
    turned: str = ""
    """How its positions turn, where sequences differ in that; blocks are shared among equal ones only."""
    stop_ids: frozenset[int] = frozenset()
    """Tokens that end the answer and are not part of it."""
    time_limit: float | None = None
    """Seconds after which the sequence ends with an error, waiting included; None sets no limit."""


@dataclass(frozen=True)
class Ended:
    """How a sequence ended."""

    sequence: int
    reason: FinishReason
    message: str = ""
    """For reason "error": what happened."""
    cached_tokens: int = 0
    """Prompt tokens that the cache had when the sequence was first admitted."""


@dataclass(eq=False)
class SequenceState:
    """A sequence that waits or runs."""

    number: int
    """The order of arrival."""
    prompt: np.ndarray
    """int64[P], the prompt's token ids."""
    max_tokens: int
    stop_ids: frozenset[int]
    names: BlockNames
    """Names of the full blocks of prompt and answer, as far as the tiles are known."""
    promised: BlockNames
    """Names of the prompt's full blocks in which files stand for tiles that were not known when it was added. They tell which sequences
    will have the same blocks."""
    deadline: float | None = None
    """When it times out, by the scheduler's clock."""
    answer: list[int] = field(default_factory=list)
    """Tokens generated so far. They survive a preemption."""
    table: list[BlockRef] = field(default_factory=list)
    """Its blocks; empty while it waits."""
    computed: int = 0
    """Tokens whose keys and values are in the blocks of the table."""
    cached_tokens: int | None = None
    """Prompt tokens that the cache had when it was first admitted; None before."""

    @property
    def length(self) -> int:
        """Tokens of prompt and answer."""
        return len(self.prompt) + len(self.answer)

    @property
    def pending(self) -> int:
        """Tokens to compute before the next one can be sampled. At least 1."""
        return self.length - self.computed

    @property
    def decoding(self) -> bool:
        """Whether only the token that was sampled last is to be computed."""
        return bool(self.answer) and self.pending == 1

    def same_block(self, other: SequenceState, block: int) -> bool:
        """Whether a block of this sequence and that of another one will hold the same."""
        here, there = ({*one.names.names[block : block + 1], *one.promised.names[block : block + 1]} for one in (self, other))
        return bool(here & there)

    def answer_between(self, start: int, stop: int) -> tuple[int, ...]:
        """The answer's tokens at places [start, stop) of the sequence."""
        first = len(self.prompt)
        return tuple(self.answer[max(start - first, 0) : max(stop - first, 0)])
