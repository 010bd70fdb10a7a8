"""A step survives its form for the broadcast, and says whose token comes from it."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from mindspeed_vita.inference.steps import BlockRef, DecodeRow, PrefillChunk, Step, decode_step, encode_step

NUMBER = st.integers(0, 2**32)
TABLE = st.lists(st.builds(BlockRef, st.integers(0, 2**20), st.integers(0, 2**40 - 1)), max_size=5).map(tuple)
CHUNK = st.builds(PrefillChunk, NUMBER, NUMBER, NUMBER, TABLE, st.lists(NUMBER, max_size=4).map(tuple), st.booleans())
ROW = st.builds(DecodeRow, NUMBER, NUMBER, NUMBER, TABLE)
STEP = st.builds(
    Step, st.lists(CHUNK, max_size=4).map(tuple), st.lists(ROW, max_size=4).map(tuple), st.lists(NUMBER, max_size=4).map(tuple)
)


@settings(max_examples=100, deadline=None)
@given(step=STEP, tail=st.integers(0, 3))
def test_the_numbers_give_the_step_back(step: Step, tail: int):
    numbers = encode_step(step)
    assert numbers.dtype == np.int64 and numbers[0] == len(numbers)
    back = decode_step(np.concatenate([numbers, np.full(tail, -1)]))
    assert back == step
    assert all(type(ref) is BlockRef for item in (*back.prefill, *back.decode) for ref in item.table)


def test_last_chunks_and_decode_rows_get_a_token():
    table = (BlockRef(0, 1),)
    chunks = (PrefillChunk(3, 0, 256, table, last=False), PrefillChunk(5, 0, 10, table))
    step = Step(chunks, (DecodeRow(1, 7, 42, table), DecodeRow(2, 8, 43, table)))
    assert step.sampled == (5, 1, 2)
    assert step.num_tokens == 256 + 10 + 2
    assert not step.empty and Step(ended=(1,)).empty
