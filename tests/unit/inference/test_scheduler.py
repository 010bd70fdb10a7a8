"""The scheduler without a model: a fake one computes tokens from what stands in the blocks, and a plain loop says what they must be."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mindspeed_vita.inference.block_names import TileSpan, root_name
from mindspeed_vita.inference.block_pool import BlockPool
from mindspeed_vita.inference.scheduler import Budgets, Scheduler
from mindspeed_vita.inference.sequence import Ended, NewSequence
from mindspeed_vita.inference.steps import BlockRef, Step, decode_step, encode_step

BLOCK, WORDS, STOP = 4, 11, 0


@dataclass(frozen=True)
class Asked:
    """A prompt of token ids; `film` gives the first tokens their pixels."""

    prompt: tuple[int, ...]
    max_tokens: int
    film: int = 0
    decoded: bool = True
    """Whether the film's digest is known before its tokens are computed."""

    @property
    def content(self) -> list[tuple[int, int]]:
        """What the model sees of each token: its id and its pixels."""
        return [(token, self.film if place < 6 else 0) for place, token in enumerate(self.prompt)]

    @property
    def digest(self) -> bytes:
        """Of its film."""
        return bytes([self.film]) * 32

    def new(self, time_limit: float | None = None) -> NewSequence:
        digest, promised = (self.digest, b"") if self.decoded else (None, bytes([100 + self.film]) * 32)
        tiles = (TileSpan(0, min(6, len(self.prompt)), digest, promised),) if self.film else ()
        return NewSequence(
            tokens=self.prompt, tiles=tiles, max_tokens=self.max_tokens, stop_ids=frozenset({STOP}), time_limit=time_limit
        )


def next_token(content: Sequence[tuple[int, int]]) -> int:
    return hashlib.sha256(repr(list(content)).encode()).digest()[0] % WORDS


def plainly(asked: Asked) -> tuple[list[int], str]:
    """The answer and the reason for its end, computed with no cache and no one else."""
    content, answer = asked.content, []
    while len(answer) < asked.max_tokens:
        token = next_token(content)
        if token == STOP:
            return answer, "stop"
        answer.append(token)
        content.append((token, 0))
    return answer, "length"


@dataclass
class FakeRanks:
    """All ranks' blocks, and what their steps left in them. A token depends on everything the sequence's table leads to."""

    prompts: dict[int, Asked] = field(default_factory=dict)
    blocks: dict[BlockRef, list[tuple[int, int] | None]] = field(default_factory=dict)
    written: list[tuple[int, int]] = field(default_factory=list)

    def _write(self, table: Sequence[BlockRef], place: int, what: tuple[int, int]) -> None:
        self.blocks.setdefault(table[place // BLOCK], [None] * BLOCK)[place % BLOCK] = what

    def _read(self, table: Sequence[BlockRef], stop: int) -> list[tuple[int, int]]:
        return [self.blocks[table[place // BLOCK]][place % BLOCK] for place in range(stop)]

    def execute(self, numbers) -> dict[int, int]:
        """Runs a step as it came from the broadcast; returns the tokens sampled from it."""
        step = decode_step(numbers)
        places = [(chunk.sequence, chunk.table, chunk.start, chunk.stop) for chunk in step.prefill]
        places += [(row.sequence, row.table, row.position, row.position + 1) for row in step.decode]
        touched = [table[block] for _, table, start, stop in places for block in range(start // BLOCK, -(-stop // BLOCK))]
        assert len(touched) == len(set(touched)), "two sequences write to one block"
        assert all(len(table) == -(-stop // BLOCK) for _, table, _, stop in places), "a table ends with the block that is written"
        read_only = {ref for _, table, start, _ in places for ref in table[: start // BLOCK]}
        assert not read_only & set(touched), "a block is written while another sequence reads it"
        for chunk in step.prefill:
            prompt = self.prompts[chunk.sequence].content
            assert len(prompt[chunk.start : chunk.stop]) + len(chunk.answer) == chunk.stop - chunk.start
            whole = prompt[chunk.start : chunk.stop] + [(token, 0) for token in chunk.answer]
            for place, what in enumerate(whole, chunk.start):
                self._write(chunk.table, place, what)
            self.written.append((chunk.sequence, chunk.start))
        for row in step.decode:
            self._write(row.table, row.position, (row.token, 0))
        stops = {sequence: (table, stop) for sequence, table, _, stop in places}
        return {sequence: next_token(self._read(*stops[sequence])) for sequence in step.sampled}


@dataclass
class Trial:
    """A scheduler over fake ranks, checked at every step."""

    scheduler: Scheduler
    ranks: FakeRanks = field(default_factory=FakeRanks)
    answers: dict[int, list[int]] = field(default_factory=dict)
    ended: dict[int, Ended] = field(default_factory=dict)
    ample: bool = False
    now: float = 0.0

    @classmethod
    def of(
        cls, blocks: int, cp: int = 1, prefill_blocks: int = 4, sequences: int = 8, max_length: int = 10_000, ample: bool = False
    ) -> Trial:
        """`blocks` on each rank; `ample`: they are enough for all, and that is checked."""
        budgets = Budgets(prefill_tokens=prefill_blocks * BLOCK, sequences=sequences, max_length=max_length)
        pool = BlockPool(blocks, cp)
        trial = cls(Scheduler(pool, budgets, root=root_name("m"), block_size=BLOCK, clock=lambda: trial.now), ample=ample)
        return trial

    def add(self, asked: Asked, time_limit: float | None = None) -> int:
        number = self.scheduler.add(asked.new(time_limit))
        self.ranks.prompts[number] = asked
        self.answers[number] = []
        return number

    def step(self, cancel: int | None = None) -> Step:
        """One step; `cancel` is cancelled while it runs."""
        self.now += 1.0
        deciding = [state.number for state in self.scheduler.running if state.decoding]
        step = self.scheduler.schedule()
        self._check(step, deciding)
        sampled = self.ranks.execute(encode_step(step))
        if cancel is not None:
            self.scheduler.end(cancel)
        if not step.empty:
            self._learn(step)
            before = {state.number: len(state.answer) for state in self.scheduler.running}
            self.scheduler.update(step, sampled)
            for state in self.scheduler.running:
                assert len(state.answer) - before[state.number] == (state.number in sampled)
            for number, token in sampled.items():
                if number in before and token != STOP:
                    self.answers[number].append(token)
        self.ended.update({ended.sequence: ended for ended in self.scheduler.take_ended()})
        return step

    def _learn(self, step: Step) -> None:
        """The digests of films that the step decoded. All who asked about film 1 learn of it; film 2 is another file for each."""
        for chunk in step.prefill:
            asked = self.ranks.prompts[chunk.sequence]
            if asked.film and chunk.start < 6:
                same = [number for number, other in self.ranks.prompts.items() if other.film == asked.film]
                for number in same if asked.film == 1 else (chunk.sequence,):
                    self.scheduler.learn(number, {0: asked.digest})

    def _check(self, step: Step, decoding: list[int]) -> None:
        scheduler, pool = self.scheduler, self.scheduler.pool
        assert sum(chunk.stop - chunk.start for chunk in step.prefill) <= scheduler.budgets.prefill_tokens
        assert len(scheduler.running) <= scheduler.budgets.sequences
        numbers = [state.number for state in (*scheduler.running, *scheduler.waiting)]
        assert numbers == sorted(numbers), "a younger sequence runs while an older one waits"
        for chunk in step.prefill:
            assert chunk.start % BLOCK == 0 and (chunk.last or chunk.stop % BLOCK == 0)
        assert {item.sequence for item in (*step.prefill, *step.decode)} <= {state.number for state in scheduler.running}
        held = [ref for state in scheduler.running for ref in state.table]
        assert all(pool.users(ref) == held.count(ref) for ref in held)
        assert all(counts.used == len({ref for ref in held if ref.rank == rank}) for rank, counts in enumerate(pool.counts()))
        assert all(counts.used + counts.cached + counts.free == pool.blocks_per_rank for counts in pool.counts())
        if self.ample:
            rows = {row.sequence for row in step.decode}
            assert rows >= set(decoding) - set(step.ended), "a sequence that decodes was left out of a step"
            assert not scheduler.num_preempted

    def finish(self, most: int = 3000) -> None:
        for _ in range(most):
            if not self.scheduler.running and not self.scheduler.waiting:
                break
            self.step()
        assert not self.scheduler.running and not self.scheduler.waiting, "not everything finished"
        self.scheduler.schedule()
        assert all(counts.used == 0 for counts in self.scheduler.pool.counts()), "blocks leaked"


ASKED = st.builds(
    Asked,
    # few beginnings, so that prompts share blocks
    prompt=st.tuples(st.sampled_from([(), (1,) * 9, (1,) * 16]), st.lists(st.integers(1, 3), min_size=1, max_size=18)).map(
        lambda parts: (*parts[0], *parts[1])
    ),
    max_tokens=st.integers(1, 14),
    film=st.sampled_from([0, 0, 1, 2]),
    decoded=st.booleans(),
)


@settings(max_examples=80, deadline=None)
@given(
    asked=st.lists(ASKED, min_size=1, max_size=8),
    cp=st.integers(1, 3),
    spare=st.integers(0, 12),
    prefill_blocks=st.integers(1, 9),
    sequences=st.integers(1, 6),
    arrivals=st.lists(st.integers(0, 3), min_size=8, max_size=8),
)
def test_tokens_are_the_plain_ones_whatever_the_budgets(
    asked: list[Asked], cp: int, spare: int, prefill_blocks: int, sequences: int, arrivals: list[int]
):
    longest = max(-(-(len(one.prompt) + one.max_tokens - 1) // BLOCK) for one in asked)
    trial = Trial.of(-(-longest // cp) + spare, cp, prefill_blocks, sequences)
    numbers = []
    for one, steps in zip(asked, arrivals):
        numbers.append(trial.add(one))
        for _ in range(steps):
            trial.step()
    trial.finish()
    for number, one in zip(numbers, asked):
        answer, reason = plainly(one)
        assert trial.answers[number] == answer
        assert trial.ended[number].reason == reason


@settings(max_examples=40, deadline=None)
@given(
    asked=st.lists(ASKED, min_size=2, max_size=8),
    cp=st.integers(1, 3),
    spare=st.integers(0, 6),
    ends=st.lists(st.tuples(st.integers(0, 7), st.booleans(), st.integers(0, 3)), max_size=6),
    limit=st.integers(1, 30),
)
def test_cancelling_and_timing_out_leave_no_block_and_no_other_answer_changed(
    asked: list[Asked], cp: int, spare: int, ends: list[tuple[int, bool, int]], limit: int
):
    longest = max(-(-(len(one.prompt) + one.max_tokens - 1) // BLOCK) for one in asked)
    trial = Trial.of(-(-longest // cp) + spare, cp, prefill_blocks=3)
    limited = trial.add(asked[0], time_limit=limit)
    numbers = [trial.add(one) for one in asked[1:]]
    for victim, in_flight, steps in ends:
        if in_flight:
            trial.step(cancel=victim)
        else:
            trial.scheduler.end(victim)
        for _ in range(steps):
            trial.step()
    trial.finish()
    assert set(trial.ended) == {limited, *numbers}
    for number, one in zip([limited, *numbers], asked):
        answer, reason = plainly(one)
        ended = trial.ended[number]
        if ended.reason in ("cancelled", "error"):
            assert trial.answers[number] == answer[: len(trial.answers[number])]
            assert ended.reason == "cancelled" or number == limited
        else:
            assert (trial.answers[number], ended.reason) == (answer, reason)


@settings(max_examples=40, deadline=None)
@given(asked=st.lists(ASKED, min_size=1, max_size=6), cp=st.integers(1, 4), prefill_blocks=st.integers(1, 20))
def test_with_room_for_all_every_step_serves_everyone_who_decodes_and_ranks_are_even(asked: list[Asked], cp: int, prefill_blocks: int):
    trial = Trial.of(200, cp, prefill_blocks, ample=True)
    firsts: list[int] = []
    for number, one in enumerate(asked):
        trial.add(Asked(one.prompt, one.max_tokens, film=number + 1))  # own films: nothing is shared
    while trial.scheduler.running or trial.scheduler.waiting:
        step = trial.step()
        firsts += [chunk.sequence for chunk in step.prefill if chunk.last]
        for item in (*step.prefill, *step.decode):
            held = [sum(ref.rank == rank for ref in item.table) for rank in range(cp)]
            assert max(held) <= len(item.table) / cp + 1
    assert firsts == sorted(firsts), "first tokens come in the order of arrival"


# seeds of prompts whose answers do not stop by themselves
def lasting(length: int, max_tokens: int, seed: int = 0, film: int = 0) -> Asked:
    for word in range(seed * 1000, seed * 1000 + 1000):
        asked = Asked((*[1] * (length - 1), word + 1), max_tokens, film)
        if plainly(asked)[1] == "length":
            return asked
    raise AssertionError("no such prompt")


@pytest.mark.parametrize("cp", [1, 2])
def test_a_full_cache_preempts_the_youngest_and_changes_no_token(cp: int):
    trial = Trial.of(12 // cp, cp, prefill_blocks=8)
    asked = [lasting(9, 20, seed, film=seed + 1) for seed in range(3)]
    numbers = [trial.add(one) for one in asked]
    order = []
    for _ in range(300):
        trial.step()
        order += [number for number in numbers if number in trial.ended and number not in order]
    assert trial.scheduler.num_preempted > 0
    assert order == numbers, "the oldest ends first"
    assert [trial.answers[number] for number in numbers] == [plainly(one)[0] for one in asked]
    trial.finish()


def test_a_preempted_sequence_sends_its_answer_along_and_reuses_what_is_still_cached():
    trial = Trial.of(8, prefill_blocks=8)
    old, young = lasting(9, 20, 0, film=1), lasting(9, 12, 1, film=2)
    trial.add(old)
    number = trial.add(young)
    again = None
    for _ in range(200):
        step = trial.step()
        again = next((chunk for chunk in step.prefill if chunk.sequence == number and chunk.answer), again)
    assert trial.scheduler.num_preempted > 0 and again is not None
    assert again.start > 0 and trial.ended[number].cached_tokens == 0, "its own blocks are no one else's work"
    assert list(again.answer) == plainly(young)[0][max(again.start - 9, 0) : again.stop - 9]
    assert trial.answers[number] == plainly(young)[0]


def test_an_older_prompt_takes_the_blocks_of_a_younger_sequence_that_decodes_in_the_same_step():
    trial = Trial.of(23, cp=2, prefill_blocks=5)  # 4 blocks of each step's 5 go to the long prompt, the last one to newcomers
    asked = [Asked((3,) * 160, 1), lasting(4, 12, 0, film=1), lasting(4, 12, 1, film=2)]
    numbers = [trial.add(one) for one in asked]
    trial.finish()
    assert trial.scheduler.num_preempted > 0
    assert [trial.answers[number] for number in numbers] == [plainly(one)[0] for one in asked]


@pytest.mark.parametrize(
    "trial, first, second",
    [
        # the younger one's blocks are promised to the rest of the older one's prompt
        (Trial.of(4, cp=2, prefill_blocks=5), Asked((3,) * 31, 1), lasting(4, 4)),
        # they are needed for the older one's answer
        (Trial.of(4, prefill_blocks=8), lasting(8, 5, 0, film=1), lasting(7, 2, 1, film=2)),
    ],
)
def test_a_sequence_is_not_admitted_to_be_preempted_at_once(trial: Trial, first: Asked, second: Asked):
    numbers = [trial.add(first), trial.add(second)]
    trial.finish()
    assert not trial.scheduler.num_preempted
    assert [trial.answers[number] for number in numbers] == [plainly(first)[0], plainly(second)[0]]


def test_cached_blocks_that_a_sequence_begins_with_do_not_count_as_room_for_its_rest():
    trial = Trial.of(8)
    trial.add(Asked((1,) * 17, 1))
    trial.finish()
    old = trial.add(lasting(9, 8, 0, film=1))
    trial.step()
    young = trial.add(Asked((*[1] * 16, 2, 2, 2, 2, 2), 1))
    trial.step()
    assert [state.number for state in trial.scheduler.running] == [old]
    trial.finish()
    assert [start for number, start in trial.ranks.written if number == young] == [16]


def test_the_second_question_about_a_film_computes_its_own_tokens_only():
    trial = Trial.of(50)
    film = (1,) * 20
    trial.add(Asked((*film, 2, 3), 3, film=1))
    trial.finish()
    second = trial.add(Asked((*film, 4, 5, 6), 3, film=1))
    trial.finish()
    assert [start for number, start in trial.ranks.written if number == second] == [20]
    assert trial.ended[second].cached_tokens == 20
    assert trial.answers[second] == plainly(Asked((*film, 4, 5, 6), 3, film=1))[0]
    other = trial.add(Asked((*film, 4, 5, 6), 3, film=2))
    trial.finish()
    assert [start for number, start in trial.ranks.written if number == other][0] == 0, "other pixels"


def test_the_next_turn_reuses_the_answer_too():
    trial = Trial.of(50)
    first = lasting(9, 10)
    number = trial.add(first)
    trial.finish()
    turn = Asked((*first.prompt, *trial.answers[number], 2, 2), 4)
    second = trial.add(turn)
    trial.finish()
    # 19 tokens, of which the last one was sampled but never computed
    assert [start for written, start in trial.ranks.written if written == second] == [16]
    assert trial.answers[second] == plainly(turn)[0]


def test_a_prompt_that_is_cached_whole_still_computes_its_end():
    trial = Trial.of(50)
    asked = lasting(8, 2)
    for expected in (0, 4):
        number = trial.add(asked)
        trial.finish()
        assert [start for written, start in trial.ranks.written if written == number] == [expected]
        assert trial.answers[number] == plainly(asked)[0]


@pytest.mark.parametrize(("film", "decoded"), [(0, True), (1, True), (1, False)])
def test_a_prefix_asked_for_twice_at_once_is_computed_once(film: int, decoded: bool):
    """Also where it is of a film that nobody has decoded yet."""
    trial = Trial.of(50, prefill_blocks=2)
    one, other = (Asked((*[1] * 20, word), 2, film, decoded) for word in (2, 3))
    first, second = trial.add(one), trial.add(other)
    trial.finish()
    assert [start for number, start in trial.ranks.written if number == first] == [0, 8, 16]
    assert [start for number, start in trial.ranks.written if number == second] == [20]
    assert [trial.answers[number] for number in (first, second)] == [plainly(one)[0], plainly(other)[0]]


def test_a_cached_prefix_that_lies_on_one_rank_does_not_lock_a_sequence_out():
    """A chunk of 8 blocks over 2 ranks is dealt 00111100, so its first two blocks lie on one rank; the rest must still fit."""
    trial = Trial.of(4, cp=2, prefill_blocks=8)
    trial.add(Asked((1,) * 31, 1))
    trial.finish()
    asked = Asked((*[1] * 8, *[2] * 21), 4)
    number = trial.add(asked)
    trial.finish(most=50)
    assert trial.answers[number] == plainly(asked)[0]


def test_a_chunk_in_the_middle_of_a_prompt_is_of_whole_zigzags():
    trial = Trial.of(50, cp=2, prefill_blocks=7)
    trial.add(Asked((1,) * 51, 1))
    sizes = []
    while trial.scheduler.running or trial.scheduler.waiting:
        sizes += [chunk.stop - chunk.start for chunk in trial.step().prefill]
    assert sizes == [4 * BLOCK, 4 * BLOCK, 19]


def test_prefill_does_not_hold_up_those_who_decode():
    trial = Trial.of(100, prefill_blocks=1)
    quick = trial.add(lasting(4, 10))
    trial.step()
    trial.add(Asked((2,) * 200, 1))
    for _ in range(9):
        assert trial.step().decode
    assert trial.ended[quick].reason == "length"


def test_a_time_limit_counts_waiting_and_says_how_far_it_came():
    trial = Trial.of(50, sequences=1)
    trial.add(lasting(4, 30))
    late = trial.add(Asked((2, 3), 5), time_limit=4)
    for _ in range(5):
        step = trial.step()
    assert trial.ended[late].reason == "error" and "0 of up to 5 tokens" in trial.ended[late].message
    assert late not in {row.sequence for row in step.decode}


def test_ranks_hear_once_of_every_sequence_that_ended():
    trial = Trial.of(50)
    first, second = trial.add(Asked((1, 2), 1)), trial.add(Asked((2, 3), 50))
    heard = [trial.step().ended for _ in range(2)]
    trial.scheduler.end(second)
    trial.scheduler.end(second)
    heard += [trial.step().ended for _ in range(2)]
    assert heard == [(), (first,), (second,), ()]


@pytest.mark.parametrize(
    "prompt, max_tokens, message",
    [
        ((1,) * 30, 20, "a prompt of 30 tokens and an answer of up to 20 do not fit: .*32 positions.*at most 2 tokens"),
        ((1,) * 40, 1, "at most 0 tokens"),
        ((), 5, "the prompt has no tokens"),
        ((1,), 0, "max_tokens=0"),
    ],
)
def test_what_can_never_be_computed_is_refused(prompt: tuple[int, ...], max_tokens: int, message: str):
    trial = Trial.of(10, max_length=32)
    with pytest.raises(ValueError, match=message):
        trial.scheduler.add(Asked(prompt, max_tokens).new())
    assert not trial.scheduler.waiting


def test_a_sequence_may_fill_the_whole_cache_and_no_more():
    trial = Trial.of(3, cp=2, prefill_blocks=2)
    with pytest.raises(ValueError, match="the cache room for 24 tokens"):
        trial.scheduler.add(Asked((1,) * 20, 6).new())
    asked = lasting(20, 5)
    number = trial.add(asked)
    trial.finish()
    assert trial.answers[number] == plainly(asked)[0]


@pytest.mark.parametrize("wrong", [{"prefill_tokens": 3}, {"prefill_tokens": 6}, {"sequences": 0}])
def test_budgets_in_which_nothing_could_be_computed_are_refused(wrong: dict[str, int]):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Scheduler(BlockPool(4), Budgets(max_length=32, **{"prefill_tokens": 8, **wrong}), root=b"", block_size=BLOCK)


def test_what_is_left_of_a_budget_and_less_than_a_block_plans_nothing():
    trial = Trial.of(blocks=16, prefill_blocks=1)
    trial.add(Asked((1, 2, 3), max_tokens=4))
    trial.add(Asked((1, 2, 3, 4, 5, 6, 7, 8), max_tokens=4))
    step = trial.step()
    assert [(chunk.start, chunk.stop) for chunk in step.prefill] == [(0, 3)], "one token of the budget is left"
    while trial.scheduler.running or trial.scheduler.waiting:
        assert all(chunk.stop > chunk.start for chunk in trial.step().prefill)
