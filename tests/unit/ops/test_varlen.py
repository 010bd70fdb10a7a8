"""Kernels for variable lengths get the keys of segments as views, or as small copies, however segments nest; results stay exact."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mindspeed_vita.ops.attention import Blocks, Upstream, reference
from mindspeed_vita.ops.attention.blocks import MOST_COPIED, pack_segments
from mindspeed_vita.ops.attention.varlen import varlen_backward, varlen_forward
from mindspeed_vita.sharding import make_cp_plan

CPU = torch.device("cpu")
NESTED = np.array([[0, 4, 0, 10], [4, 8, 0, 20], [8, 11, 0, 30], [11, 15, 30, 41], [18, 20, 30, 47]])


class Recording:
    """Plain math that keeps the number of segments of each call."""

    def __init__(self) -> None:
        self.calls: list[int] = []

    def segments(self, packed) -> np.ndarray:
        self.calls.append(len(packed.query_ends))
        bounds = [packed.cu_query[:-1], packed.cu_query[1:], packed.cu_key[:-1], packed.cu_key[1:]]
        return torch.stack(bounds, dim=1).long().numpy()

    def forward(self, rows, packed):
        out, lse = reference.blocks_forward(replace(rows, segments=self.segments(packed)))
        return out, lse.transpose(0, 1)

    def backward(self, rows, upstream, lse_NQ, packed):
        dq, dkv = torch.zeros(rows.q_TND.shape), torch.zeros(2, *rows.k_SGD.shape)
        assert torch.equal(lse_NQ.T, upstream.lse_TN) and lse_NQ.is_contiguous()
        reference.blocks_backward(replace(rows, segments=self.segments(packed)), upstream, dq_TND=dq, dkv_2SGD=dkv)
        return dq, dkv[0], dkv[1]


@pytest.mark.parametrize("copied, calls", [(0, [1, 1, 2, 1]), (30, [2, 2, 1]), (1000, [5])], ids=["views", "some copied", "one call"])
def test_nested_segments_are_exact_in_any_number_of_calls(copied: int, calls: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mindspeed_vita.ops.attention.blocks.MOST_COPIED", copied)
    generator = torch.Generator().manual_seed(3)
    query, key, value, grad = (torch.randn(50, heads, 8, generator=generator) for heads in (4, 2, 2, 4))
    segments, kernel = NESTED.copy(), Recording()
    rows = np.concatenate([np.arange(start, stop) for start, stop in segments[:, :2]])
    blocks = Blocks(q_TND=query, k_SGD=key, v_SGD=value, segments=segments, causal=False, scale=0.3)
    found = varlen_forward(kernel, blocks)
    assert kernel.calls == calls
    wanted = reference.blocks_forward(blocks)
    out, lse = torch.zeros_like(query), torch.zeros(50, 4)
    out[rows], lse[rows] = wanted
    sums = [(torch.zeros_like(query), torch.zeros(2, *key.shape)) for _ in range(2)]
    upstream = Upstream(grad_TND=grad, out_TND=out, lse_TN=lse)
    varlen_backward(kernel, blocks, upstream, dq_TND=sums[0][0], dkv_2SGD=sums[0][1])
    reference.blocks_backward(blocks, upstream, dq_TND=sums[1][0], dkv_2SGD=sums[1][1])
    for ours, expected in zip((*found, *sums[0]), (*wanted, *sums[1])):
        torch.testing.assert_close(ours, expected, rtol=0, atol=2e-6)


def copied_rows(segments: np.ndarray) -> int:
    """Key rows that the calls for some segments copy; checks that the calls hold every segment, in order."""
    calls = pack_segments(segments, CPU)
    lengths = np.concatenate([np.diff([0, *call.key_ends]) for call in calls])
    np.testing.assert_array_equal(lengths, segments[:, 3] - segments[:, 2])
    assert all(isinstance(call.key_rows, slice) or call.key_ends[-1] <= MOST_COPIED for call in calls)
    return sum(call.key_ends[-1] for call in calls if not isinstance(call.key_rows, slice))


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_few_of_the_received_key_rows_are_copied(data: st.DataObject) -> None:
    cp_size = data.draw(st.integers(2, 8))
    num_tokens = 2 * cp_size * data.draw(st.integers(1, 40_000))
    bounds = np.array(sorted({0, num_tokens, *data.draw(st.lists(st.integers(1, num_tokens), max_size=6))}))
    steps = make_cp_plan(bounds, cp_size).steps(data.draw(st.integers(0, cp_size - 1)))
    for step in steps.ring:
        if len(step.segments):
            assert copied_rows(step.segments) <= max(step.num_received, MOST_COPIED)
    assert copied_rows(steps.diagonal_segments) == 0


def test_many_small_copies_are_bounded_too() -> None:
    queries = np.arange(100)
    segments = np.stack([queries, queries + 1, np.zeros(100, dtype=int), 200 + 4 * queries], axis=1)
    assert 0 < copied_rows(segments) <= MOST_COPIED < int((segments[:, 3] - segments[:, 2]).sum()) / 4


def test_chunks_of_long_documents_are_read_in_place() -> None:
    """Each segment of these is too long to be worth a copy."""
    cp_plan = make_cp_plan(np.array([0, 2**20 // 3, 2**20]), 8)
    steps = [step for rank in range(8) for step in cp_plan.steps(rank).ring if len(step.segments)]
    read = max(int((step.segments[:, 3] - step.segments[:, 2]).sum()) / step.num_received for step in steps)
    assert read > 5, "the plan has no nested segments, so it shows nothing"
    assert sum(copied_rows(step.segments) for step in steps) <= sum(step.num_received for step in steps) / 4
