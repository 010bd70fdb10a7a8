"""Which blocks of global tensors a flat range of a rank's parameter is.

A distributed optimizer gives each data-parallel rank a range of the flattened parameter. Such a range is cut into boxes, and each box
into the parts that megatron.core's sharding description names. So a rank saves and loads its range without the rest of the parameter.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from mindspeed_vita.checkpoint.native.shards import Piece, Reader, stored

Box = tuple[tuple[int, ...], tuple[int, ...]]
"""Offset and size of a box in a tensor, by dim."""


@dataclass(frozen=True, kw_only=True)
class Block:
    """A box of a global tensor that lies in one flat range of a rank's parameter."""

    key: str
    """Of the global tensor."""
    offset: tuple[int, ...]
    """Index of the box's first element in the global tensor."""
    global_shape: tuple[int, ...]
    shape: tuple[int, ...]
    """Size of the box, with as many dims as the global tensor."""
    first: int
    """Place of the box's first element in the flat range."""
    strides: tuple[int, ...]
    """Distance of neighbours in the flat range, by dim."""

    def of(self, values: torch.Tensor) -> torch.Tensor:
        """The box's elements of a flat range, as a view.

        Args:
            values: the range's elements, one after the other in memory.
        """
        return values.as_strided(self.shape, self.strides, values.storage_offset() + self.first)

    def piece(self, values: torch.Tensor) -> Piece:
        """The box as it is written. Its data is a view of `values`, the elements of the range."""
        return Piece(key=self.key, offset=self.offset, global_shape=self.global_shape, data=self.of(values))

    def load(self, reader: Reader, values: torch.Tensor) -> None:
        """Reads the box into its place in `values`, the elements of the range.

        Raises:
            ValueError: as `stored`.
        """
        self.of(values).copy_(stored(reader, self.key, self.offset, self.shape, self.global_shape, values.dtype))


def blocks(weight: Any, shape: Sequence[int], start: int, end: int) -> Iterator[Block]:
    """The blocks of elements `start` to `end` of a flattened parameter. Elements that no checkpoint holds, such as zero heads, have none.

    Args:
        weight: megatron.core's ShardedTensor or factory of the parameter. Its data is not looked at.
        shape: of this rank's parameter.
        start: first element of the range.
        end: element behind the range.

    Raises:
        ValueError: the factory of a plugin makes copies of the parameter; only views show which elements they are.
    """
    from megatron.core.dist_checkpointing.dict_utils import nested_values

    parameter = torch.empty(tuple(shape), dtype=torch.float32, device="meta")
    # a factory cuts the tensor that it is given; one without memory shows where
    if hasattr(weight, "dtype"):
        parts = [replace(weight, data=parameter, dtype=parameter.dtype)]
    else:
        parts = list(nested_values({"": replace(weight, data=parameter).build()}))
    wanted = list(boxes(tuple(shape), start, end))
    for part in parts:
        at = _place(part.data, parameter, part.key)
        added = part.prepend_axis_num
        for offset, size in wanted:
            low = [max(a, b) for a, b in zip(at, offset)]
            high = [min(a + n, b + m) for a, n, b, m in zip(at, part.data.shape, offset, size)]
            if any(a >= b for a, b in zip(low, high)):
                continue
            inner = [here + a - b for here, a, b in zip(part.global_offset[added:], low, at)]
            yield Block(
                key=part.key,
                offset=(*part.global_offset[:added], *inner),
                global_shape=tuple(part.global_shape),
                shape=(*(1,) * added, *(b - a for a, b in zip(low, high))),
                first=sum(a * stride for a, stride in zip(low, parameter.stride())) - start,
                strides=(*(0,) * added, *parameter.stride()),
            )


def boxes(shape: tuple[int, ...], start: int, end: int) -> Iterator[Box]:
    """Cuts elements `start` to `end` of a row-major tensor into boxes: at most 2 * dims - 1, in the order of their elements."""
    if start >= end:
        return
    if not shape:
        yield (), ()
        return
    row = math.prod(shape[1:])
    first, last = -(-start // row), end // row  # the whole rows
    if first > last:  # the range begins and ends inside one row
        yield from _in_row(shape, last, start - last * row, end - last * row)
        return
    yield from _in_row(shape, first - 1, start - (first - 1) * row, row if start < first * row else 0)
    if first < last:
        yield (first, *(0,) * (len(shape) - 1)), (last - first, *shape[1:])
    yield from _in_row(shape, last, 0, end - last * row)


def _in_row(shape: tuple[int, ...], index: int, start: int, end: int) -> Iterator[Box]:
    return (((index, *offset), (1, *size)) for offset, size in boxes(shape[1:], start, end))


def _place(part: torch.Tensor, parameter: torch.Tensor, key: str) -> list[int]:
    """Index of a part's first element in the parameter.

    Raises:
        ValueError: the part is no box of the parameter's own elements.
    """
    own = part.untyped_storage()._cdata == parameter.untyped_storage()._cdata
    # a dim of one element may have any stride
    alike = part.dim() == parameter.dim() and all(n == 1 or a == b for n, a, b in zip(part.shape, part.stride(), parameter.stride()))
    if not (own and alike):
        raise ValueError(
            f"sharded_state_dict cuts {key} into tensors that are not slices of the parameter, so the optimizer's ranges cannot be "
            f"placed; return slices (narrow, chunk, split) without a copy, permutation or reshape"
        )
    rest, place = part.storage_offset(), []
    for stride in parameter.stride():
        place.append(rest // stride)
        rest %= stride
    return place
