"""Sampling against transformers' processors, bit for bit; and seeds, bans, log-probabilities, and batches of unlike rows."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    LogitsProcessorList,
    MinNewTokensLengthLogitsProcessor,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    SuppressTokensLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from mindspeed_vita.inference.sampling import SampledToken, SamplingParams, SamplingRow, broken_rows, processed, sample

WORDS = 50

PARAMS = st.builds(
    SamplingParams,
    temperature=st.sampled_from([0.0, 1.0, 0.3, 0.7, 1.9]),
    top_k=st.sampled_from([0, 1, 3, 20, 500]),
    top_p=st.sampled_from([1.0, 0.9, 0.5, 0.05]),
    min_p=st.sampled_from([0.0, 0.02, 0.3, 1.0]),
    repetition_penalty=st.sampled_from([1.0, 1.3, 0.8]),
    min_tokens=st.integers(0, 3),
    seed=st.integers(0, 2**63),
    logprobs=st.sampled_from([None, 0, 3]),
)
IDS = st.lists(st.integers(0, WORDS - 1), max_size=5)


@st.composite
def rows(draw: Any) -> tuple[list[SamplingRow], list[tuple[list[int], list[int]]]]:
    """Rows, and prompt and answer of each."""
    made, texts = [], []
    for _ in range(draw(st.integers(1, 5))):
        prompt, answer = draw(IDS.filter(len)), draw(IDS)
        stops, banned = frozenset(draw(IDS)), frozenset(draw(IDS))
        made.append(SamplingRow(draw(PARAMS), stops, banned, prompt, Counter(answer), len(answer)))
        texts.append((prompt, answer))
    return made, texts


def logits_of(seed: int, num_rows: int, scale: float = 3.0, words: int = WORDS) -> torch.Tensor:
    return torch.randn(num_rows, words, generator=torch.Generator().manual_seed(seed)) * scale


def by_transformers(logits: torch.Tensor, row: SamplingRow, prompt: list[int], answer: list[int]) -> torch.Tensor:
    """One row through transformers' processors, in the order of its generate."""
    params, chain = row.params, LogitsProcessorList()
    if params.repetition_penalty != 1:
        chain.append(RepetitionPenaltyLogitsProcessor(params.repetition_penalty))
    if params.min_tokens and row.stop_ids:
        chain.append(MinNewTokensLengthLogitsProcessor(len(prompt), params.min_tokens, sorted(row.stop_ids)))
    if row.banned_ids:
        chain.append(SuppressTokensLogitsProcessor(sorted(row.banned_ids)))
    if params.temperature:
        if params.temperature != 1:
            chain.append(TemperatureLogitsWarper(params.temperature))
        if params.top_k:
            chain.append(TopKLogitsWarper(params.top_k))
        if params.top_p < 1:
            chain.append(TopPLogitsWarper(params.top_p))
        if params.min_p:
            chain.append(MinPLogitsWarper(params.min_p))
    return chain(torch.tensor([[*prompt, *answer]]), logits[None])[0]


@settings(max_examples=80, deadline=None)
@given(made=rows(), seed=st.integers(0, 2**16), coarse=st.booleans())
def test_scores_equal_transformers_in_every_bit(made: Any, seed: int, coarse: bool):
    rows, texts = made
    logits = logits_of(seed, len(rows))
    if coarse:
        logits = logits.round()  # many tokens equally likely
    untouched = logits.clone()
    found = processed(logits, rows)
    for place, (row, (prompt, answer)) in enumerate(zip(rows, texts)):
        expected = by_transformers(untouched[place], row, prompt, answer)
        if coarse and row.params.top_p < 1:
            # which of equally likely tokens top-p leaves out is open in transformers (its sort is not stable); how many is not
            assert torch.equal(found[place].sort().values, expected.sort().values)
        else:
            assert torch.equal(found[place], expected)
    assert torch.equal(logits, untouched)


@settings(max_examples=30, deadline=None)
@given(made=rows(), seed=st.integers(0, 2**16))
def test_a_row_gives_the_same_token_alone_as_among_others(made: Any, seed: int):
    rows, _ = made
    logits = logits_of(seed, len(rows))
    together = sample(logits, rows)
    assert together == [sample(logits[place : place + 1], [row])[0] for place, row in enumerate(rows)]
    scores = processed(logits, rows)
    for place, chosen in enumerate(together):
        assert scores[place, chosen.token] > -math.inf
        assert rows[place].params.temperature or chosen.token == int(scores[place].argmax())


def test_the_seed_and_the_place_in_the_answer_decide():
    logits = torch.zeros(1, 5000)

    def answer(seed: int) -> list[int]:
        row, tokens = SamplingRow(SamplingParams(temperature=1.0, seed=seed)), []
        for _ in range(8):
            tokens.append(sample(logits, [row])[0].token)
            row.add(tokens[-1])
        return tokens

    first = answer(7)
    assert first == answer(7) and len(set(first)) > 6
    assert not set(first) & set(answer(8))
    assert SamplingParams(seed=3).seeded().seed == 3
    assert SamplingParams().seeded().seed != SamplingParams().seeded().seed


def test_draws_follow_the_distribution():
    params, draws = SamplingParams(temperature=0.8, top_k=4, seed=1), 4000
    logits = logits_of(3, 1, scale=1.0, words=8)
    expected = processed(logits, [SamplingRow(params)]).softmax(-1)[0]
    rows = [SamplingRow(params, num_tokens=place) for place in range(draws)]
    counts = torch.bincount(torch.tensor([chosen.token for chosen in sample(logits.expand(draws, -1), rows)]), minlength=8)
    assert (counts[expected == 0] == 0).all()
    spread = (expected * (1 - expected) / draws).sqrt()
    assert ((counts / draws - expected).abs() <= 4 * spread).all()


@pytest.mark.parametrize("uniform", [0.0, 1 - 2**-53])
def test_the_ends_of_the_distribution_choose_a_token_that_can_be_chosen(uniform: float, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(SamplingRow, "uniform", lambda self: uniform)
    logits = logits_of(5, 1, words=1000)
    row = SamplingRow(SamplingParams(temperature=1.0, top_k=7, seed=0), banned_ids=frozenset({0, 999}))
    allowed = processed(logits, [row])[0].isfinite().nonzero()[:, 0]
    assert sample(logits, [row])[0].token == int(allowed[0] if uniform == 0 else allowed[-1])


def test_presence_and_frequency_penalties_concern_the_answer_only():
    logits = torch.zeros(1, 6)
    row = SamplingRow(SamplingParams(presence_penalty=0.5, frequency_penalty=0.25), prompt=[0, 0])
    assert torch.equal(processed(logits, [row]), logits)
    for token in (2, 2, 4):
        row.add(token)
    assert processed(logits, [row]).tolist() == [[0.0, 0.0, -1.0, 0.0, -0.75, 0.0]]


def test_a_repeated_token_is_penalized_once_also_if_it_is_in_the_prompt():
    row = SamplingRow(SamplingParams(repetition_penalty=2.0), prompt=[1, 1, 900])
    row.add(1)
    row.add(2)
    assert processed(torch.tensor([[1.0, 4.0, -4.0, 1.0]]), [row]).tolist() == [[1.0, 2.0, -8.0, 1.0]]


def test_stop_tokens_are_chosen_only_after_min_tokens_and_never_if_the_end_is_ignored():
    logits = torch.tensor([[0.0, 5.0, 1.0]])
    row = SamplingRow(SamplingParams(min_tokens=1), stop_ids=frozenset({1}))
    assert sample(logits, [row])[0].token == 2
    row.add(2)
    assert sample(logits, [row])[0].token == 1
    assert sample(logits, [SamplingRow(SamplingParams(ignore_end=True), stop_ids=frozenset({1}))])[0].token == 2


def test_banned_tokens_are_never_chosen():
    row = SamplingRow(SamplingParams(), banned_ids=frozenset({0, 1}))
    assert sample(torch.tensor([[9.0, 8.0, 1.0]]), [row]) == [SampledToken(2)]


def test_rows_that_are_no_numbers_are_found():
    logits = logits_of(2, 5)
    logits[1, 3], logits[2, 0], logits[4, 7] = math.nan, math.inf, -math.inf
    assert broken_rows(logits) == [1, 2, 4]
    assert broken_rows(torch.full((2, 9), torch.finfo(torch.float32).max)) == []
    assert broken_rows(logits[:0]) == []


def test_log_probabilities_are_the_models_own():
    logits = logits_of(1, 3)
    rows = [
        SamplingRow(SamplingParams(temperature=2.0, top_k=2, seed=4, logprobs=3), banned_ids=frozenset({int(logits[0].argmax())})),
        SamplingRow(SamplingParams()),
        SamplingRow(SamplingParams(logprobs=0)),
    ]
    own = logits.log_softmax(-1)
    drawn, plain, chosen_only = sample(logits, rows)
    assert drawn.logprob == own[0, drawn.token].item()
    assert drawn.top == tuple((int(token), own[0, token].item()) for token in own[0].argsort(descending=True)[:3])
    assert plain == SampledToken(int(logits[1].argmax()))
    assert chosen_only == SampledToken(int(logits[2].argmax()), own[2].max().item())


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"temperature": -1}, "temperature=-1; expected a number of at least 0"),
        ({"temperature": 1e-9}, r"temperature=1e-09; expected 0 \(greedy\) or at least 0.01"),
        ({"temperature": math.nan}, "temperature=nan"),
        ({"temperature": math.inf}, "temperature=inf"),
        ({"temperature": "hot"}, "temperature='hot'"),
        ({"top_p": 1.5}, "top_p=1.5; expected a number from 0 to 1"),
        ({"top_p": 0}, "top_p=0 leaves no token"),
        ({"min_p": -0.1}, "min_p=-0.1"),
        ({"top_k": -1}, "top_k=-1; expected a whole number from 0 to"),
        ({"top_k": 10**30}, "expected a whole number from 0 to"),
        ({"temperature": 10**400}, "expected a number of at least 0"),
        ({"stop": 5}, "stop=5; expected several texts"),
        ({"stop": None}, "stop=None; expected several texts"),
        ({"stop": {"a": 1}}, "expected several texts"),
        ({"ignore_end": "no"}, "ignore_end='no'; expected true or false"),
        ({"top_k": 1.5}, "top_k=1.5"),
        ({"top_k": True}, "top_k=True"),
        ({"repetition_penalty": 0}, "repetition_penalty=0; expected a number from 0.01 to 100"),
        ({"repetition_penalty": 1e-300}, "repetition_penalty=1e-300; expected a number from 0.01 to 100"),
        ({"repetition_penalty": 1e300}, r"repetition_penalty=1e\+300; expected a number from 0.01 to 100"),
        ({"presence_penalty": 3}, "presence_penalty=3; expected a number from -2 to 2"),
        ({"frequency_penalty": -3}, "frequency_penalty=-3"),
        ({"max_tokens": 0}, "max_tokens=0; expected a whole number of at least 1"),
        ({"max_tokens": 3, "min_tokens": 4}, "min_tokens=4 is more than max_tokens=3"),
        ({"seed": 0.5}, "seed=0.5"),
        ({"stop": "end"}, "stop='end'; expected several texts"),
        ({"stop": ("",)}, "none of them empty"),
        ({"stop": ("x",) * 17}, "stop has 17 texts; expected at most 16"),
        ({"logprobs": 21}, "logprobs=21; expected a whole number from 0 to 20"),
    ],
)
def test_values_outside_their_range_are_refused(wrong: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        SamplingParams(**wrong)


def test_forced_tokens_are_taken_and_watched_ones_scored() -> None:
    logits = logits_of(3, 3)
    own = logits.log_softmax(-1)
    params = SamplingParams(forced=(7, 9), watched=(4, 2), logprobs=1)
    first, second = SamplingRow(params), SamplingRow(params, num_tokens=1)
    free = SamplingRow(params, num_tokens=2)
    one, two, three = sample(logits, [first, second, free])
    assert (one.token, two.token, three.token) == (7, 9, int(logits[2].argmax()))
    assert one.logprob == own[0, 7].item() and two.logprob == own[1, 9].item(), "the model's own probability of what was forced"
    assert one.top == ((int(logits[0].argmax()), own[0].max().item()),)
    assert one.watched == (own[0, 4].item(), own[0, 2].item()) and two.watched == three.watched == ()


def test_forced_and_watched_tokens_out_of_range() -> None:
    with pytest.raises(ValueError, match="a token of forced=-1; expected a whole number of at least 0"):
        SamplingParams(forced=(-1,))
    with pytest.raises(ValueError, match="asks for log-probabilities; set logprobs, at least to 0"):
        SamplingParams(watched=(1,))
