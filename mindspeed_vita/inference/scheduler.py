"""Continuous batching: decides one step of the model at a time, on rank 0, from numbers alone.

Sequences are served in the order of their arrival. Each step holds a token of every sequence that decodes, and prefill chunks up to a
budget, so neither kind of work can hold up the other. When the blocks run out, the youngest running sequence gives its blocks up and
is computed again later (preemption by recomputation). What it has generated stays.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from mindspeed_vita.inference.block_names import BlockNames
from mindspeed_vita.inference.block_pool import BlockPool
from mindspeed_vita.inference.sequence import Ended, FinishReason, NewSequence, SequenceState
from mindspeed_vita.inference.steps import BLOCK_SIZE, BlockRef, DecodeRow, PrefillChunk, Step
from mindspeed_vita.sharding import deal_blocks


@dataclass(frozen=True, kw_only=True)
class Budgets:
    """What a step and the model allow."""

    prefill_tokens: int = 8192
    """Most prompt tokens of a step; a multiple of the block size. Activations grow with it."""
    sequences: int = 64
    """Most sequences that run at once, so most decode rows of a step."""
    max_length: int
    """Most tokens of a sequence, prompt and answer: the model's positions."""


class Scheduler:
    """Waiting and running sequences over one block pool.

    The running ones are always older than the waiting ones: the oldest waiting one is admitted, the youngest running one is preempted.

    Args:
        pool: the cache's blocks.
        budgets: see Budgets.
        root: root of the blocks' names (block_names.root_name).
        block_size: tokens of a block.
        clock: seconds, for time limits.

    Raises:
        ValueError: budgets in which nothing could be computed.
    """

    def __init__(
        self,
        pool: BlockPool,
        budgets: Budgets,
        *,
        root: bytes,
        block_size: int = BLOCK_SIZE,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if budgets.prefill_tokens < block_size or budgets.prefill_tokens % block_size:
            raise ValueError(f"prefill_tokens={budgets.prefill_tokens} is no multiple of a block's {block_size} tokens; use one")
        if budgets.sequences < 1:
            raise ValueError(f"sequences={budgets.sequences} lets no sequence run; use at least 1")
        self.pool, self.budgets, self.block_size = pool, budgets, block_size
        self.waiting: deque[SequenceState] = deque()
        self.running: list[SequenceState] = []
        self.num_preempted = 0
        self._root, self._clock, self._next_number = root, clock, 0
        self._ended: list[Ended] = []
        self._ended_for_step: list[int] = []
        self._in_flight: Step | None = None

    # Requests

    def add(self, new: NewSequence) -> int:
        """Takes a sequence into the queue; returns its number.

        Raises:
            ValueError: it could never be computed: no prompt, longer than the model or the whole cache allows, or tiles that do not fit it.
        """
        prompt = np.asarray(new.tokens, dtype=np.int64)
        room = self.room()
        if not len(prompt):
            raise ValueError("the prompt has no tokens; expected at least one")
        if new.max_tokens < 1:
            raise ValueError(f"max_tokens={new.max_tokens}; expected at least 1")
        if len(prompt) + new.max_tokens > room:
            raise ValueError(
                f"a prompt of {len(prompt)} tokens and an answer of up to {new.max_tokens} do not fit: the model has "
                f"{self.budgets.max_length} positions, the cache room for {self._cache_tokens()} tokens; shorten the prompt or ask "
                f"for at most {max(room - len(prompt), 0)} tokens"
            )
        root = self._root + new.turned.encode()
        names = promised = BlockNames(root, prompt, new.tiles, self.block_size)
        if any(tile.promised for tile in new.tiles):
            promised = BlockNames(root, prompt, [replace(tile, digest=tile.promised or tile.digest) for tile in new.tiles], self.block_size)
        deadline = None if new.time_limit is None else self._clock() + new.time_limit
        state = SequenceState(self._next_number, prompt, new.max_tokens, new.stop_ids, names, promised, deadline)
        self._next_number += 1
        self.waiting.append(state)
        return state.number

    def room(self) -> int:
        """Most tokens of a sequence, prompt and answer. The last token of an answer needs no place in the cache."""
        return min(self.budgets.max_length, self._cache_tokens() + 1)

    def end(self, number: int, reason: FinishReason = "cancelled", message: str = "") -> None:
        """Ends a sequence from outside: it was cancelled, or met a stop string. One that has ended is left alone.

        It may also be called between schedule and update; the step's result for the sequence is then dropped.
        """
        for state in (*self.running, *self.waiting):
            if state.number == number:
                self._end(state, reason, message)

    def learn(self, number: int, digests: Mapping[int, bytes]) -> None:
        """Takes the pooled digests of a sequence's tiles that were not known when it was added, by their numbers.

        Those that a step decoded must be known before its update. A sequence that has ended is left alone.
        """
        for state in (*self.running, *self.waiting):
            if state.number == number:
                state.names.learn(digests)

    def take_ended(self) -> list[Ended]:
        """The sequences that ended since the last call, in the order in which they ended."""
        ended, self._ended = self._ended, []
        return ended

    # Steps

    def schedule(self) -> Step:
        """Decides the next step. An empty one says that nothing is to be computed; it may still name sequences that ended.

        Call update after every step that is not empty.
        """
        assert self._in_flight is None, "the step before has not been reported with update"
        self._time_out()
        decode: dict[int, DecodeRow] = {}
        prefill: dict[int, PrefillChunk] = {}
        for state in list(self.running):
            if state.decoding and state in self.running:
                self._plan_row(state, decode)
        budget = self.budgets.prefill_tokens
        for state in list(self.running):
            if not state.decoding and state in self.running and budget:
                budget -= self._plan_chunk(state, budget, prefill, decode)
        while self.waiting and budget and len(self.running) < self.budgets.sequences and self._admit():
            spent = self._plan_chunk(self.running[-1], budget, prefill, decode)
            budget = budget - spent if spent else 0
        step = Step(tuple(prefill.values()), tuple(decode.values()), tuple(self._ended_for_step))
        self._ended_for_step = []
        self._in_flight = None if step.empty else step
        return step

    def update(self, step: Step, sampled: Mapping[int, int]) -> None:
        """Takes the result of a step: what it wrote counts as computed, and each of step.sampled goes on with its token.

        Args:
            step: what schedule returned last.
            sampled: token of each sequence of step.sampled. Those that were ended meanwhile are left alone.
        """
        assert step is self._in_flight, "update takes the step that schedule returned last"
        self._in_flight = None
        stops = {chunk.sequence: chunk.stop for chunk in step.prefill}
        stops.update({row.sequence: row.position + 1 for row in step.decode})
        getting = set(step.sampled)
        for state in list(self.running):
            if state.number not in stops:
                continue
            first = state.computed // self.block_size
            state.computed = stops[state.number]
            for block in range(first, state.computed // self.block_size):
                self.pool.give_name(state.table[block], state.names.names[block])
            if state.number in getting:
                self._take_token(state, sampled[state.number])

    def _take_token(self, state: SequenceState, token: int) -> None:
        if token in state.stop_ids:
            self._end(state, "stop")
            return
        state.answer.append(token)
        state.names.extend([token])
        if len(state.answer) >= state.max_tokens:
            self._end(state, "length")

    def _plan_row(self, state: SequenceState, decode: dict[int, DecodeRow]) -> None:
        """One token of a sequence, if there is a block to write it to."""
        if state.computed == len(state.table) * self.block_size:
            while not any(self.pool.available(rank) for rank in range(self.pool.cp)):
                if not self._preempt_younger(state, decode):
                    return
            state.table.append(self.pool.allocate(self._rank_in_turn(state.table)))
        decode[state.number] = DecodeRow(state.number, state.computed, state.answer[-1], tuple(state.table))

    def _rank_in_turn(self, table: list[BlockRef]) -> int:
        """The rank for a new block of an answer: of those with room, one that holds the fewest of the sequence."""
        held = [0] * self.pool.cp
        for ref in table:
            held[ref.rank] += 1
        return min((rank for rank in range(self.pool.cp) if self.pool.available(rank)), key=lambda rank: (held[rank], rank))

    def _plan_chunk(
        self, state: SequenceState, budget: int, prefill: dict[int, PrefillChunk], decode: dict[int, DecodeRow]
    ) -> int:
        """A chunk of a sequence, if its blocks can be had; returns the tokens spent."""
        blocks = min(budget // self.block_size, -(-state.pending // self.block_size))
        if not blocks:  # what is left of the budget is less than a block
            return 0
        zigzag = 2 * self.pool.cp
        if blocks * self.block_size < state.pending and blocks > zigzag:
            blocks -= blocks % zigzag  # a chunk in the middle of a prompt: whole zigzags make the ring even
        stop = min(state.computed + blocks * self.block_size, state.length)
        ranks = deal_blocks(len(state.table), blocks, self.pool.cp)
        needed = np.bincount(ranks, minlength=self.pool.cp)
        while any(self.pool.available(rank) < needed[rank] for rank in range(self.pool.cp)):
            if not self._preempt_younger(state, decode):
                return 0
        state.table += [self.pool.allocate(int(rank)) for rank in ranks]
        answer, last = state.answer_between(state.computed, stop), stop == state.length
        prefill[state.number] = PrefillChunk(state.number, state.computed, stop, tuple(state.table), answer, last)
        return stop - state.computed

    def _preempt_younger(self, state: SequenceState, decode: dict[int, DecodeRow]) -> bool:
        """Takes the blocks of the youngest running sequence. False if that is this one: then it waits until older ones end."""
        victim = self.running[-1]
        if victim is state:
            return False
        self.running.pop()
        decode.pop(victim.number, None)
        self._give_back(victim)
        self.waiting.appendleft(victim)
        self.num_preempted += 1
        return True

    # Admission

    def _admit(self) -> bool:
        """Lets the oldest waiting sequence run if its prompt is likely to find its blocks, over those that the cache has already."""
        state = self.waiting[0]
        hits = self._usable(state)
        if self._in_the_making(state, len(hits)):
            return False
        needed = -(-state.length // self.block_size) - len(hits)
        promised = sum(-(-other.length // self.block_size) - len(other.table) for other in self.running)
        growth = len(self.running) + 1 if self.running else 0  # a block for everyone's answer, else the first ones to grow would preempt
        idle = sum(not self.pool.users(ref) for ref in hits)
        if needed + promised + growth > sum(map(self.pool.available, range(self.pool.cp))) - idle:
            return False
        self.waiting.popleft()
        for ref in hits:
            self.pool.share(ref)
        state.table, state.computed = hits, len(hits) * self.block_size
        if state.cached_tokens is None:
            state.cached_tokens = state.computed
        self.running.append(state)
        return True

    def _usable(self, state: SequenceState) -> list[BlockRef]:
        """The blocks of the cache that the sequence can begin with.

        At least its last token is computed, because the next one is sampled from it. Blocks dealt for another prompt's chunks may lie
        unevenly. They are used only as far as the sequence, alone in the cache, would still find room for the rest on every rank.
        """
        hits = self.pool.find(state.names.names[: (state.length - 1) // self.block_size])
        whole = -(-(len(state.prompt) + state.max_tokens - 1) // self.block_size)
        held = np.bincount([ref.rank for ref in hits], minlength=self.pool.cp)
        while hits and held.max() + -(-(whole - len(hits)) // self.pool.cp) + 1 > self.pool.blocks_per_rank:
            held[hits.pop().rank] -= 1
        return hits

    def _in_the_making(self, state: SequenceState, block: int) -> bool:
        """Whether a running sequence's prefill will compute the very block that this one would compute first. That is worth waiting for."""
        if block >= (state.length - 1) // self.block_size:
            return False
        start = block * self.block_size
        return any(not other.decoding and other.computed <= start and state.same_block(other, block) for other in self.running)

    # Ends

    def _end(self, state: SequenceState, reason: FinishReason, message: str = "") -> None:
        if state in self.running:
            self.running.remove(state)
            self._give_back(state)
        else:
            self.waiting.remove(state)
        self._ended.append(Ended(state.number, reason, message, state.cached_tokens or 0))
        self._ended_for_step.append(state.number)

    def _give_back(self, state: SequenceState) -> None:
        self.pool.release(state.table)
        state.table, state.computed = [], 0

    def _time_out(self) -> None:
        now = self._clock()
        for state in (*self.running, *self.waiting):
            if state.deadline is not None and now >= state.deadline:
                done = f"{len(state.answer)} of up to {state.max_tokens} tokens"
                self._end(state, "error", f"the time limit passed after {done} of the answer; ask for fewer tokens or give it more time")

    def _cache_tokens(self) -> int:
        return self.pool.num_blocks * self.block_size
