"""Positions restart with each document of a pack."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mindspeed_vita.data.assemble import EncodedSample, assemble_pack
from mindspeed_vita.data.positions import document_positions

SAMPLE = EncodedSample(
    sample_id=0,
    source_id=0,
    source="s",
    root="",
    tokens_T=np.arange(10, 15),
    labels_T=np.arange(11, 16),
    tile_starts_N=np.zeros(0, dtype=np.int64),
    media=(),
)


@given(lengths=st.lists(st.integers(0, 20), min_size=1, max_size=8))
def test_each_document_counts_from_0(lengths: list[int]) -> None:
    positions = document_positions(np.cumsum([0, *lengths]))
    assert positions.dtype == np.int64
    assert positions.tolist() == [position for length in lengths for position in range(length)]


@pytest.mark.parametrize(("resets", "expected"), [(True, [0, 5, 10, 16]), (False, [0, 10, 16])])
def test_padding_is_a_document_of_its_own(resets: bool, expected: list[int]) -> None:
    pack = assemble_pack(
        [SAMPLE, replace(SAMPLE, sample_id=1)], seq_length=16, resets=resets, pad_id=0, context_ids=(), tile_size=4
    )
    assert pack.cu_seqlens.tolist() == expected
    assert pack.positions_T.tolist() == document_positions(np.array(expected)).tolist()


@pytest.mark.parametrize(("resets", "expected"), [(True, [0, 5, 16]), (False, [0, 16])])
def test_an_open_end_belongs_to_the_last_document(resets: bool, expected: list[int]) -> None:
    samples = [SAMPLE, replace(SAMPLE, sample_id=1)]
    pack = assemble_pack(samples, seq_length=16, resets=resets, pad_id=0, context_ids=(), tile_size=4, open_end=True)
    assert pack.cu_seqlens.tolist() == expected == pack.cp_plan.piece_bounds.tolist()
    assert pack.positions_T.tolist() == document_positions(np.array(expected)).tolist()
    assert pack.sample_cu.tolist() == [0, 5, 10], "the answer's places are no tokens of the prompt"
