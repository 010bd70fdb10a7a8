"""What is common to attention in blocks: the rows of segments as tensors on a device, and the merge of partial results.

Segments are those of call.Blocks. Shapes as in call.py.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from mindspeed_vita.ops.attention.call import Rows

MOST_COPIED = 8192
"""Key rows that one call may copy to save another call. Segments of a long document nest: each would copy those before it again."""


@dataclass(frozen=True)
class PackedSegments:
    """Segments of one call, as kernels for variable lengths want them: their rows one after the other.

    Attributes:
        query_rows, key_rows: a slice where the rows are one stretch, else int64 indices on the device.
        cu_query, cu_key: int32[n + 1] on the device, bounds of the segments among those rows.
        query_ends, key_ends: the same bounds on the host, without the leading 0.
        longest_query, longest_key: tokens of the longest segment.
    """

    query_rows: Rows
    key_rows: Rows
    cu_query: torch.Tensor
    cu_key: torch.Tensor
    query_ends: tuple[int, ...]
    key_ends: tuple[int, ...]
    longest_query: int
    longest_key: int


def pack_segments(segments: np.ndarray, device: torch.device) -> tuple[PackedSegments, ...]:
    """The segments in few calls, in order; made once for each array, since every layer asks for the same ones.

    A call whose segments' keys lie one after the other reads them in place. Others are joined to one call, with a copy of their keys,
    of at most MOST_COPIED rows a call, and in all of at most as many rows as there are keys, or MOST_COPIED.
    """
    return kept(segments, device, "packed", lambda: make_packed(segments, device))


def make_packed(segments: np.ndarray, device: torch.device) -> tuple[PackedSegments, ...]:
    """What pack_segments keeps."""
    return tuple(_pack(part, device) for part in np.split(segments, _call_starts(segments)))


def segment_rows(segments: np.ndarray, device: torch.device) -> Rows:
    """Query rows of all segments, one after the other."""
    return kept(segments, device, "rows", lambda: make_rows(segments, device))


def make_rows(segments: np.ndarray, device: torch.device) -> Rows:
    """What segment_rows keeps."""
    return _rows(segments[:, :2], device)


def on_device(array: np.ndarray, device: torch.device) -> torch.Tensor:
    """An array as a tensor on a device; moved once. On a CPU the two share their memory."""
    if device.type == "cpu":
        return torch.from_numpy(array)
    return kept(array, device, "tensor", lambda: torch.from_numpy(array).to(device))


_kept: dict[tuple[int, str, str], Any] = {}


def kept(array: np.ndarray, device: torch.device, name: str, make: Callable[[], Any]) -> Any:
    """What was made of an array for a device, for as long as the array lives: a copy to a device makes the host wait each time."""
    key = (id(array), str(device), name)
    if key not in _kept:
        keep(array, device, name, make())
    return _kept[key]


def keep(array: np.ndarray, device: torch.device, name: str, value: Any) -> None:
    """Gives `kept` what it would make; see ahead.py."""
    key = (id(array), str(device), name)
    if key not in _kept:
        weakref.finalize(array, _kept.pop, key, None)
    _kept[key] = value


def _call_starts(segments: np.ndarray) -> list[int]:
    """Where each call after the first begins."""
    stretches = np.append(np.flatnonzero(np.append(True, segments[1:, 2] != segments[:-1, 3])), len(segments))
    lengths = segments[:, 3] - segments[:, 2]
    left = max(int(segments[:, 3].max()), MOST_COPIED)
    starts: list[int] = []
    rows = copied = 0
    for start, stop in zip(stretches[:-1].tolist(), stretches[1:].tolist()):
        more = int(lengths[start:stop].sum())
        if start and rows + more <= min(MOST_COPIED, left + copied):
            left -= rows + more - copied
            rows = copied = rows + more
        else:
            starts += [start] if start else []
            rows, copied = more, 0
    return starts


def _pack(segments: np.ndarray, device: torch.device) -> PackedSegments:
    query_lengths, key_lengths = segments[:, 1] - segments[:, 0], segments[:, 3] - segments[:, 2]

    def bounds(lengths: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)).to(device)

    return PackedSegments(
        _rows(segments[:, :2], device),
        _rows(segments[:, 2:], device),
        bounds(query_lengths),
        bounds(key_lengths),
        tuple(np.cumsum(query_lengths).tolist()),
        tuple(np.cumsum(key_lengths).tolist()),
        int(query_lengths.max()),
        int(key_lengths.max()),
    )


def _rows(ranges: np.ndarray, device: torch.device) -> Rows:
    if (ranges[1:, 0] == ranges[:-1, 1]).all():
        return slice(int(ranges[0, 0]), int(ranges[-1, 1]))
    return torch.from_numpy(np.concatenate([np.arange(start, stop) for start, stop in ranges])).to(device)


def merge_(out_TND: torch.Tensor, lse_TN: torch.Tensor, rows: Rows, block_out_QND: torch.Tensor, block_lse_QN: torch.Tensor) -> None:
    """Merges a partial result into some rows of an fp32 accumulator, in place, by log-sum-exp; plain torch on any device."""
    old_lse, out_QND = lse_TN[rows], out_TND[rows]  # views where the rows are one stretch
    new_lse = torch.logaddexp(old_lse, block_lse_QN)
    out_QND.mul_((old_lse - new_lse).exp().unsqueeze(-1))
    out_QND.addcmul_(block_out_QND.float(), (block_lse_QN - new_lse).exp().unsqueeze(-1))
    if not isinstance(rows, slice):
        out_TND[rows] = out_QND
    lse_TN[rows] = new_lse


def add_rows_(total: torch.Tensor, rows: Rows, part: torch.Tensor, dim: int = 0) -> None:
    """Adds a part to some rows of a total, in place; a row that is named twice gets both."""
    if isinstance(rows, slice):
        total.narrow(dim, rows.start, rows.stop - rows.start).add_(part)
    else:
        total.index_add_(dim, rows, part.to(total.dtype))
