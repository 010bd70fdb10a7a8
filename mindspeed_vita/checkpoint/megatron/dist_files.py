"""Reads the weights of a Megatron checkpoint of --ckpt-format torch_dist: blocks of whole tensors in __*_*.distcp files.

Its .metadata file says which block of which tensor lies where. One block at a time is in memory. Decoder layers may be stacked in one
tensor, as core 0.12 and 0.16 write them, or stand alone. Only weights are read, no optimizer.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any, Optional

import torch

from mindspeed_vita.checkpoint.mapping.mindspeed_names import native_name
from mindspeed_vita.checkpoint.megatron.pickles import Record, read_metadata, read_tensor
from mindspeed_vita.checkpoint.megatron.rank_files import METADATA, iteration_of
from mindspeed_vita.files.tensors import Made, Spec, Tensors

_FILE = re.compile(r"__\d+_\d+\.distcp")
_STACKED = re.compile(r"((?:language\.)?decoder\.layers\.)(?!\d)(.*)")
_NOT_WEIGHTS = ("optimizer.", "chained_", "rng_state", "rerun_state_machine")
_UNUSED = "._extra_state"


@dataclass(frozen=True)
class _Block:
    """A block of a tensor, and where it lies."""

    offset: tuple[int, ...]
    shape: tuple[int, ...]
    path: Path
    start: int
    length: int

    def overlaps(self, other: _Block) -> bool:
        """Whether an element is in both."""
        ranges = zip(self.offset, self.shape, other.offset, other.shape, strict=True)
        return all(a < b + m and b < a + n for a, n, b, m in ranges)


@dataclass(frozen=True)
class _Stored:
    """A tensor of the checkpoint."""

    spec: Spec
    blocks: tuple[_Block, ...]


def is_distributed(folder: Path) -> bool:
    """Whether --ckpt-format torch_dist wrote a checkpoint.

    Args:
        folder: a run's folder (its latest iteration is looked at) or an iteration's.

    Raises:
        ValueError: the file that names the iteration is damaged.
    """
    return (iteration_of(folder) / METADATA).is_file()


def read_full_weights(folder: Path, num_layers: int) -> tuple[Tensors, tuple[Path, ...]]:
    """Whole tensors under native names, each read when it is asked for, and the files that hold them.

    Args:
        folder: a run's folder (its latest iteration is taken) or an iteration's.
        num_layers: decoder layers of the architecture.

    Raises:
        ValueError: the metadata is damaged, or says something of the files that is not so.
    """
    iteration = iteration_of(folder)
    stored = _index(iteration)
    places: dict[str, tuple[_Stored, Optional[int]]] = {}
    for key, tensor in stored.items():
        stack = _STACKED.fullmatch(key)
        if stack is not None and tensor.spec.shape[:1] != (num_layers,):
            found = f"{key} has the shape {tensor.spec.shape}"
            raise ValueError(f"{folder}: {found}, expected {num_layers} layers first; use the recipe of the run")
        names = [(f"{stack[1]}{layer}.{stack[2]}", layer) for layer in range(num_layers)] if stack else [(key, None)]
        for name, layer in names:
            native = native_name(name)
            if native in places:
                raise ValueError(f"{folder}: two tensors become {native}")
            if native is not None:
                places[native] = (tensor, layer)
    specs = {
        name: tensor.spec if layer is None else Spec(tensor.spec.dtype, tensor.spec.shape[1:]) for name, (tensor, layer) in places.items()
    }
    files = sorted({block.path for tensor, _ in places.values() for block in tensor.blocks})
    return Made(specs, lambda name: _read(name, *places[name])), (iteration / METADATA, *files)


def _read(name: str, tensor: _Stored, layer: Optional[int]) -> torch.Tensor:
    """A whole tensor, or one layer of a stack."""
    shape = tensor.spec.shape
    low, high = ((0,) * len(shape), shape) if layer is None else ((layer, *(0,) * (len(shape) - 1)), (layer + 1, *shape[1:]))
    wanted = _Block(low, tuple(b - a for a, b in zip(low, high)), Path(), 0, 0)
    blocks = [block for block in tensor.blocks if block.overlaps(wanted)]
    whole = None
    for block in blocks:
        values = _values(name, block, tensor.spec.dtype)
        begins = [max(a, b) for a, b in zip(block.offset, low)]
        ends = [min(a + n, b) for a, n, b in zip(block.offset, block.shape, high)]
        values = values[tuple(slice(a - o, b - o) for a, b, o in zip(begins, ends, block.offset))]
        if tuple(values.shape) == wanted.shape:
            whole = values
            break
        whole = torch.empty(wanted.shape, dtype=tensor.spec.dtype) if whole is None else whole
        whole[tuple(slice(a - o, b - o) for a, b, o in zip(begins, ends, low))] = values
    assert whole is not None, "the blocks cover the tensor"
    return whole if layer is None else whole[0]


def _values(name: str, block: _Block, dtype: torch.dtype) -> torch.Tensor:
    values = read_tensor(block.path, block.start, block.length)
    if not isinstance(values, torch.Tensor) or values.dtype != dtype or tuple(values.shape) != block.shape:
        found = f"{tuple(values.shape)} {values.dtype}" if isinstance(values, torch.Tensor) else type(values).__name__
        raise ValueError(f"{block.path} holds {found} for {name}, the metadata says {block.shape} {dtype}; copy the checkpoint again")
    return values.detach()


def _index(iteration: Path) -> dict[str, _Stored]:
    """The weights by key."""
    path = iteration / METADATA
    metadata = read_metadata(path)
    tensors, storage = getattr(metadata, "state_dict_metadata", None), getattr(metadata, "storage_data", None)
    if not isinstance(tensors, dict) or not isinstance(storage, dict):
        raise ValueError(f"{path} does not list tensors and places; expected what torch.distributed.checkpoint writes")
    lies = {}
    for index, info in storage.items():
        offset = _numbers(getattr(index, "offset", None))
        if offset is not None:
            lies[str(getattr(index, "fqn", "")), offset] = info
    sizes = {file.name: file.stat().st_size for file in iteration.iterdir() if _FILE.fullmatch(file.name)}
    return {
        str(key): _stored(path, str(key), value, lies, sizes)
        for key, value in tensors.items()
        if hasattr(value, "chunks") and not str(key).startswith(_NOT_WEIGHTS) and _UNUSED not in str(key)
    }


def _stored(path: Path, key: str, value: Any, lies: Mapping[tuple[str, tuple[int, ...]], Any], sizes: Mapping[str, int]) -> _Stored:
    shape = _numbers(getattr(value, "size", None))
    state = getattr(getattr(value, "properties", None), "state", None)
    dtype = state[0] if isinstance(state, tuple) and state else getattr(getattr(value, "properties", None), "dtype", None)
    chunks = value.chunks if isinstance(value.chunks, list) else []
    if shape is None or not isinstance(dtype, torch.dtype) or not all(isinstance(chunk, Record) for chunk in chunks):
        raise ValueError(f"{path}: {key} has no shape and type that can be read; copy the checkpoint again")
    blocks = tuple(_block(path, key, shape, chunk, lies, sizes) for chunk in chunks)
    covered = sum(math.prod(block.shape) for block in blocks)
    if covered != math.prod(shape) or _any_overlap(blocks):
        found = f"hold {covered:,} of {math.prod(shape):,} elements, or overlap"
        raise ValueError(f"{path}: the blocks of {key} {found}; copy the checkpoint again")
    return _Stored(Spec(dtype, shape), blocks)


def _any_overlap(blocks: Sequence[_Block]) -> bool:
    rows: dict[tuple[int, int], list[_Block]] = {}
    for block in blocks:  # stacked layers: many rows of few blocks
        rows.setdefault((block.offset[0], block.shape[0]) if block.offset else (0, 1), []).append(block)
    ends = sorted(rows)
    if any(first[0] + first[1] > second[0] for first, second in zip(ends, ends[1:])):
        return any(one.overlaps(other) for one, other in combinations(blocks, 2))
    return any(one.overlaps(other) for row in rows.values() for one, other in combinations(row, 2))


def _block(
    path: Path, key: str, shape: tuple[int, ...], chunk: Any, lies: Mapping[tuple[str, tuple[int, ...]], Any], sizes: Mapping[str, int]
) -> _Block:
    offset, size = _numbers(getattr(chunk, "offsets", None)), _numbers(getattr(chunk, "sizes", None))
    if offset is None or size is None or not len(offset) == len(size) == len(shape):
        raise ValueError(f"{path}: a block of {key} has no place and size that can be read; copy the checkpoint again")
    if any(at + count > axis for at, count, axis in zip(offset, size, shape)):
        raise ValueError(f"{path}: the block of {key} at {offset} with {size} lies outside {shape}; copy the checkpoint again")
    info = lies.get((key, offset))
    file, span = getattr(info, "relative_path", None), _numbers([getattr(info, "offset", None), getattr(info, "length", None)])
    if not isinstance(file, str) or file not in sizes or span is None or span[0] + span[1] > sizes[file]:
        raise ValueError(
            f"{path}: the block of {key} at {offset} should lie in {file!r} at {span}, and is not there; copy the checkpoint whole"
        )
    transformed = getattr(info, "transform_descriptors", None)
    if transformed:
        raise ValueError(f"{path}: {key} is compressed or encrypted ({transformed}), which cannot be read; save it plain")
    return _Block(offset, size, path.with_name(file), *span)


def _numbers(value: Any) -> Optional[tuple[int, ...]]:
    """Numbers from 0 on, or None where a value is something else."""
    if not isinstance(value, (tuple, list)) or not all(isinstance(number, int) and number >= 0 for number in value):
        return None
    return tuple(value)
