"""Flat ranges of a parameter, as data-parallel ranks hold them, are written and read back as blocks of the whole tensor."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from megatron.core.dist_checkpointing.mapping import ShardedTensor, ShardedTensorFactory

from mindspeed_vita.checkpoint.native import shards
from mindspeed_vita.checkpoint.native.flat_ranges import blocks, boxes

SHAPES = st.lists(st.integers(1, 5), max_size=4).map(tuple)


@st.composite
def ranges(draw: st.DrawFn) -> tuple[tuple[int, ...], int, int]:
    shape = draw(SHAPES)
    start = draw(st.integers(0, math.prod(shape)))
    return shape, start, draw(st.integers(start, math.prod(shape)))


@given(ranges())
def test_boxes_hold_a_range_in_order(case):
    shape, start, end = case
    found = list(boxes(shape, start, end))
    indices = torch.arange(math.prod(shape)).reshape(shape)
    held = [indices[tuple(slice(a, a + n) for a, n in zip(*box))].reshape(-1) for box in found]
    assert torch.cat([torch.arange(0), *held]).tolist() == list(range(start, end))
    assert len(found) <= max(1, 2 * len(shape) - 1)


def plain(whole: torch.Tensor, number: int, parts: int) -> tuple[torch.Tensor, ShardedTensor]:
    """Part of a tensor that is cut along its first dim."""
    local = whole.chunk(parts)[number]
    return local, ShardedTensor.from_rank_offsets("x", local, (0, number, parts))


def prepended(whole: torch.Tensor, number: int, parts: int) -> tuple[torch.Tensor, ShardedTensor]:
    """Part of a tensor whose first dim counts layers, which the parameter itself lacks."""
    local = whole[number]
    return local, ShardedTensor.from_rank_offsets("x", local, (0, number, parts), prepend_axis_num=1)


def halves(whole: torch.Tensor, number: int, parts: int) -> tuple[torch.Tensor, ShardedTensorFactory]:
    """Gate and values next to each other in the parameter, and apart in the whole tensor, as in a gated MLP."""
    local = torch.cat([half.chunk(parts)[number] for half in whole.chunk(2)])

    def build(key: str, data: torch.Tensor, replica_id: Any, flattened_range: Any) -> list[ShardedTensor]:
        return [ShardedTensor.from_rank_offsets(key, half, (0, number + parts * n, 2 * parts)) for n, half in enumerate(data.chunk(2))]

    return local, ShardedTensorFactory("x", local, build, torch.cat)


def columns(whole: torch.Tensor, number: int, parts: int) -> tuple[torch.Tensor, ShardedTensorFactory]:
    """Columns of which the last rank has one more, of zeros, that is not part of the whole tensor."""
    size = whole.shape[1]
    held = -(-size // parts)
    local = torch.cat([whole, whole.new_zeros(len(whole), held * parts - size)], 1).chunk(parts, 1)[number].contiguous()

    def build(key: str, data: torch.Tensor, replica_id: Any, flattened_range: Any) -> dict[str, ShardedTensor]:
        first = number * held
        real = [n for n in range(held) if first + n < size]
        return {str(n): ShardedTensor.from_rank_offsets(key, data[:, n : n + 1], (1, first + n, size)) for n in real}

    return local, ShardedTensorFactory("x", local, build, torch.cat)


@pytest.mark.parametrize(
    ("sharding", "shape", "parts"),
    [
        (plain, (7,), 1),
        (plain, (6, 5), 2),
        (plain, (4, 3, 2), 1),
        (plain, (4, 1, 3), 2),
        (prepended, (2, 3, 4), 2),
        (halves, (8, 3), 2),
        (columns, (4, 5), 2),
        (plain, (), 1),
    ],
)
def test_ranges_make_up_the_tensor_and_are_read_back(tmp_path: Path, sharding: Any, shape: tuple[int, ...], parts: int) -> None:
    """Three ranks hold ranges of each rank's parameter, whose borders lie anywhere."""
    whole = 1 + torch.arange(math.prod(shape), dtype=torch.float32).reshape(shape)
    held = []
    for number in range(parts):
        local, weight = sharding(whole, number, parts) if shape else (whole, ShardedTensor.from_rank_offsets("x", whole))
        size = local.numel()
        for rank, (start, end) in enumerate(((0, size // 3), (size // 3, size - size // 4), (size - size // 4, size))):
            # ranges lie somewhere in a longer buffer
            buffer = torch.cat([torch.full((2,), -1.0), local.reshape(-1)[start:end], torch.full((2,), -1.0)])
            values, own = buffer[2:-2], list(blocks(weight, local.shape, start, end))
            held.append((values, own))
            shards.write(tmp_path / f"{number}_{rank}.safetensors", [block.piece(values) for block in own])
    reader = shards.Reader(tmp_path)
    assert torch.equal(reader.tensor("x"), whole)
    for values, own in held:
        again = torch.zeros_like(values)
        for block in own:
            block.load(reader, again)
        assert torch.equal(again, values)


def test_a_factory_that_copies_or_turns_the_parameter_is_refused():
    parameter = torch.zeros(4, 4)
    for change in (torch.clone, torch.t):

        def build(key: str, data: torch.Tensor, replica_id: Any, flattened_range: Any, change: Any = change) -> list[ShardedTensor]:
            return [ShardedTensor.from_rank_offsets(key, change(data))]

        factory = ShardedTensorFactory("vision.mine", parameter, build, torch.cat)
        with pytest.raises(ValueError, match="cuts vision.mine into tensors that are not slices.*return slices"):
            list(blocks(factory, parameter.shape, 0, 3))


def test_tensors_of_replicas_are_shared_out_by_size():
    sizes = {"a": 8, "b": 5, "c": 3, "d": 2, "e": 7}
    owners: dict[str, list[int]] = {name: [] for name in sizes}
    for rank in range(2):
        entries = {name: ShardedTensor.from_rank_offsets(name, torch.zeros(size), replica_id=(0, 0, rank)) for name, size in sizes.items()}
        entries["e"].replica_id = (0, 1, rank)  # another tensor-parallel rank writes it
        for name, entry in shards.shared_out(entries, 2).items():
            if not any(entry.replica_id):
                owners[name].append(rank)
    assert owners == {"a": [0], "b": [1], "c": [1], "d": [0], "e": []}
