"""Any block of a tensor is read back from any division into pieces."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from megatron.core.dist_checkpointing.mapping import ShardedTensor
from safetensors import safe_open

from mindspeed_vita.checkpoint.native import shards


def division(draw: st.DrawFn, size: int) -> list[int]:
    """Bounds of consecutive parts of a dim."""
    return [0, *sorted(draw(st.sets(st.integers(1, size - 1), max_size=3)) if size > 1 else ()), size]


@st.composite
def cases(draw: st.DrawFn):
    shape = draw(st.lists(st.integers(1, 6), min_size=1, max_size=3))
    bounds = [division(draw, size) for size in shape]
    low = [draw(st.integers(0, size - 1)) for size in shape]
    high = [draw(st.integers(a + 1, size)) for a, size in zip(low, shape)]
    return shape, bounds, low, high


@given(cases())
def test_blocks_do_not_depend_on_the_pieces(tmp_path_factory, case):
    shape, bounds, low, high = case
    folder = tmp_path_factory.mktemp("shards")
    full = torch.arange(torch.Size(shape).numel(), dtype=torch.float32).reshape(shape)
    starts = torch.cartesian_prod(*(torch.tensor(b[:-1]) for b in bounds)).reshape(-1, len(shape)).tolist()
    for number, start in enumerate(starts):
        end = [b[b.index(a) + 1] for a, b in zip(start, bounds)]
        data = full[tuple(slice(a, b) for a, b in zip(start, end))]
        piece = shards.Piece(key="layer.weight", offset=tuple(start), global_shape=tuple(shape), data=data)
        shards.write(folder / f"rank_{number:05d}.safetensors", [piece])
    reader = shards.Reader(folder)
    wanted = full[tuple(slice(a, b) for a, b in zip(low, high))]
    assert torch.equal(reader.block("layer.weight", tuple(low), tuple(wanted.shape), torch.float32), wanted)
    assert torch.equal(reader.tensor("layer.weight"), full)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.uint8, torch.bool])
def test_files_are_plain_safetensors(tmp_path: Path, dtype: torch.dtype):
    data = torch.arange(6).reshape(2, 3).to(dtype)
    shards.write(tmp_path / "a.safetensors", [shards.whole("x", data), shards.whole("scalar", torch.tensor(3.0))])
    with safe_open(tmp_path / "a.safetensors", framework="pt") as file:
        assert torch.equal(file.get_tensor("x"), data)
    reader = shards.Reader(tmp_path)
    assert torch.equal(reader.tensor("scalar"), torch.tensor(3.0))
    assert reader.unread() == {"x"}


def test_a_gap_is_an_error(tmp_path: Path):
    piece = shards.Piece(key="x", offset=(0,), global_shape=(4,), data=torch.zeros(2))
    shards.write(tmp_path / "a.safetensors", [piece])
    with pytest.raises(ValueError, match="x holds 2 of 4 elements"):
        shards.Reader(tmp_path).tensor("x")


def test_nothing_to_write_writes_nothing(tmp_path: Path):
    assert shards.write(tmp_path / "a.safetensors", []) is None
    assert list(tmp_path.iterdir()) == []


def sharded(*pieces: tuple[int, int, int], size: int = 2) -> dict[str, ShardedTensor]:
    """Pieces of a tensor, each as (number of its place, places, replica)."""
    return {
        str(number): ShardedTensor.from_rank_offsets("x", torch.zeros(size), (0, place, places), replica_id=(0, 0, replica))
        for number, (place, places, replica) in enumerate(pieces)
    }


@pytest.mark.parametrize(
    ("pieces", "problem"),
    [
        ([(0, 2, 0)], "own 2 elements of x in 1 pieces at 1 places, expected 4"),
        ([(0, 2, 0), (0, 2, 0)], "own 4 elements of x in 2 pieces at 1 places"),
        ([(0, 2, 0), (1, 2, 0), (1, 2, 0)], "own 6 elements of x"),
        ([(0, 2, 0), (1, 3, 0)], r"gives x the global shapes \[\(4,\), \(6,\)\]"),
    ],
)
def test_pieces_that_do_not_make_up_a_tensor_are_refused(pieces: list[tuple[int, int, int]], problem: str):
    with pytest.raises(ValueError, match=f"sharded_state_dict.*{problem}"):
        shards.owned_pieces(sharded(*pieces))


def test_a_tensor_that_nobody_owns_is_refused():
    entries = sharded((0, 1, 0))
    entries["0"].replica_id = (1, 0, 0)  # the copy of another pipeline stage, without that stage
    with pytest.raises(ValueError, match="own 0 elements of x in 0 pieces at 0 places, expected 2"):
        shards.owned_pieces(entries)


def test_replicas_are_not_owned():
    (piece,) = shards.owned_pieces({**sharded((0, 1, 0)), "copy": sharded((0, 1, 1))["0"]})
    assert (piece.key, piece.offset, piece.global_shape) == ("x", (0,), (2,))
