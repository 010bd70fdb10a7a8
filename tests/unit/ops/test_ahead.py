"""What attention keeps for a plan can be made before it is asked for, and is the same."""

import numpy as np
import pytest
import torch

from mindspeed_vita.ops.attention import blocks
from mindspeed_vita.ops.attention.ahead import Ahead
from mindspeed_vita.sharding import make_cp_plan
from mindspeed_vita.sharding.ring_steps import RankSteps

ELSEWHERE = torch.device("meta")
"""Stands for a device: what is made for it anew is made there."""


def plan(ring_size: int, node_size: int = 0) -> RankSteps:
    """The steps of one rank, of documents that span ranks."""
    return make_cp_plan(np.array([0, 37, 38, 300, 411, 512]), ring_size, node_size=node_size).steps(ring_size - 1)


@pytest.mark.parametrize(("ring_size", "node_size"), [(1, 0), (2, 0), (4, 0), (4, 2)])
def test_attention_finds_what_was_copied_and_makes_nothing(ring_size: int, node_size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = plan(ring_size, node_size)
    ahead = Ahead.of(steps)
    copied = ahead.tensors()
    ahead.keep(ELSEWHERE, copied)
    monkeypatch.setattr(blocks, "_pack", lambda *arguments: pytest.fail("made again"))
    monkeypatch.setattr(blocks, "_rows", lambda *arguments: pytest.fail("made again"))
    found = [blocks.pack_segments(steps.diagonal_segments, ELSEWHERE)]
    assert len(steps.rounds) == (ring_size // node_size if node_size else 1)
    for send in (*(later.send for later in steps.rounds[1:]), *(step.send for step in steps.ring)):
        assert torch.equal(blocks.on_device(send, ELSEWHERE), torch.from_numpy(send))
    for step in steps.ring:
        if len(step.segments):
            found.append(blocks.pack_segments(step.segments, ELSEWHERE))
            blocks.segment_rows(step.segments, ELSEWHERE)
    used = {id(tensor) for packs in found for packed in packs for tensor in (packed.cu_query, packed.cu_key)}
    assert used <= {id(tensor) for tensor in copied}
    assert all(tensor.device.type == "cpu" for tensor in copied)


def test_what_is_kept_equals_what_is_made_when_asked_for() -> None:
    steps = plan(2)
    ahead = Ahead.of(steps)
    ahead.keep(ELSEWHERE, ahead.tensors())
    cpu = torch.device("cpu")
    for array in (steps.diagonal_segments, *(step.segments for step in steps.ring if len(step.segments))):
        for kept, made in zip(blocks.pack_segments(array, ELSEWHERE), blocks.pack_segments(array, cpu), strict=True):
            assert (kept.query_ends, kept.key_ends, kept.longest_query) == (made.query_ends, made.key_ends, made.longest_query)
            assert torch.equal(kept.cu_query, made.cu_query) and torch.equal(kept.cu_key, made.cu_key)


def test_what_was_copied_goes_with_the_plan() -> None:
    steps = plan(2)
    before = set(blocks._kept)
    ahead = Ahead.of(steps)
    ahead.keep(ELSEWHERE, [tensor.clone() for tensor in ahead.tensors()])
    assert set(blocks._kept) - before
    del steps, ahead
    assert not set(blocks._kept) - before
