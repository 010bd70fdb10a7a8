"""One safetensors file: its header read and checked, its tensors mapped without a copy, and the writer.

The writer is ours because safetensors' own hides what the system said about a full disk behind an error of its own.
"""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Union

import torch

from mindspeed_vita.files.digest import checksum
from mindspeed_vita.files.writing import naming

DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
"""torch's types and their names in a header."""
TORCH_DTYPES = {name: dtype for dtype, name in DTYPES.items()}
_LARGEST_HEADER = 100_000_000
"""Bytes; safetensors itself refuses more."""


@dataclass(frozen=True)
class Entry:
    """What a header says about a tensor."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    """First byte, counted from the start of the file."""
    stop: int


class SafetensorsFile:
    """A file whose header was read and checked. Tensors are views of the mapped file: they take no memory of their own.

    Args:
        path: the file.

    Raises:
        ValueError: it is cut off, or is no safetensors file; the message says which part is wrong.
        OSError: it cannot be read.
    """

    def __init__(self, path: Union[str, Path]) -> None:
        self.path = Path(path)
        try:
            self.metadata, self.entries = _read_header(self.path)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{path} is not a whole safetensors file: {error}; copy it again") from error

    def tensor(self, name: str) -> torch.Tensor:
        """A tensor of the file, mapped. Do not write to it."""
        entry = self.entries[name]
        size = entry.dtype.itemsize
        if entry.start % size:  # files of other writers may be unaligned
            raw = self._view(torch.uint8, entry.start, entry.stop - entry.start)
            return raw.clone().view(entry.dtype).view(entry.shape)
        return self._view(entry.dtype, entry.start // size, (entry.stop - entry.start) // size).view(entry.shape)

    def _view(self, dtype: torch.dtype, first: int, count: int) -> torch.Tensor:
        return torch.empty(0, dtype=dtype).set_(self._bytes, first, (count,), (1,))

    @cached_property
    def _bytes(self) -> Any:
        """The file's bytes, mapped at the first use: pages are read when they are touched, and belong to the page cache."""
        return torch.UntypedStorage.from_file(str(self.path), shared=False, nbytes=self.path.stat().st_size)


def _read_header(path: Path) -> tuple[dict[str, str], dict[str, Entry]]:
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(size - 8, _LARGEST_HEADER):
            raise ValueError(f"it has {size:,} bytes, and its header would have {length:,}")
        header = json.loads(file.read(length))
    metadata = dict(header.pop("__metadata__", {}))
    data, entries = 8 + length, {}
    for name, entry in header.items():
        first, last = entry["data_offsets"]
        if entry["dtype"] not in TORCH_DTYPES:
            raise ValueError(f"{name} has the type {entry['dtype']}; expected one of {', '.join(TORCH_DTYPES)}")
        dtype, shape = TORCH_DTYPES[entry["dtype"]], torch.Size(entry["shape"])
        if last - first != shape.numel() * dtype.itemsize or not 0 <= first <= last:
            raise ValueError(f"{name} has {last - first:,} bytes, expected {shape.numel() * dtype.itemsize:,} for {tuple(shape)} {dtype}")
        entries[name] = Entry(dtype, tuple(shape), data + first, data + last)
    end = data
    for name, held in sorted(entries.items(), key=lambda item: item[1].start):
        if held.start != end:
            raise ValueError(f"{name} begins at byte {held.start:,}, expected {end:,}")
        end = held.stop
    if end != size:
        raise ValueError(f"it has {size:,} bytes, its header describes {end:,}")
    return metadata, entries


def encode_header(tensors: Sequence[tuple[str, torch.dtype, Sequence[int]]], metadata: Mapping[str, str]) -> bytes:
    """Everything of a file that comes before its tensors.

    Args:
        tensors: name, type and shape of each tensor, in the order of the data.
        metadata: the header's free entries.
    """
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    end = 0
    for name, dtype, shape in tensors:
        start, end = end, end + torch.Size(shape).numel() * dtype.itemsize
        assert name not in header, name
        header[name] = {"dtype": DTYPES[dtype], "shape": list(shape), "data_offsets": [start, end]}
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)
    return len(encoded).to_bytes(8, "little") + encoded


def write_tensors(path: Path, tensors: Sequence[tuple[str, torch.Tensor]], metadata: Mapping[str, str]) -> str:
    """Writes one safetensors file, synced to disk.

    Args:
        path: file to create; its folder exists.
        tensors: names, each once, and contents.
        metadata: the header's free entries.

    Returns:
        Checksum of the file.

    Raises:
        OSError: naming the file.
    """
    header = encode_header([(name, data.dtype, tuple(data.shape)) for name, data in tensors], metadata)
    digest = checksum()
    with naming(path), path.open("wb") as file:
        for content in itertools.chain((header,), (tensor_bytes(data) for _, data in tensors)):
            digest.update(content)
            file.write(content)
        file.flush()
        os.fsync(file.fileno())
    return str(digest.hexdigest())


def tensor_bytes(data: torch.Tensor) -> Any:
    """A tensor's elements in row-major order; a copy only where they do not lie so in host memory."""
    return memoryview(data.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())  # type: ignore[arg-type]
