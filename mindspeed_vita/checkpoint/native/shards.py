"""Sharded tensors in safetensors files: every rank writes the pieces it owns, any layout reads them back.

megatron.core.dist_checkpointing says which piece of which global tensor a rank holds; the files are ours: no pickles, no
forked writers, the same on every core line. A piece is stored under its key, or key@offset,... when it is not the whole tensor.
"""

from __future__ import annotations

import json
import math
import operator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Callable, Iterable, Optional

import torch

from mindspeed_vita.checkpoint.native.atomic import nothing
from mindspeed_vita.checkpoint.native.ranks import gather
from mindspeed_vita.files.safetensors_file import SafetensorsFile, write_tensors
from mindspeed_vita.files.tensors import Made, Spec, Tensors


@dataclass(frozen=True, kw_only=True)
class Piece:
    """A block of a global tensor."""

    key: str
    offset: tuple[int, ...]
    """Index of the block's first element in the global tensor."""
    global_shape: tuple[int, ...]
    data: torch.Tensor
    """The block, with as many dims as the global tensor."""

    @property
    def name(self) -> str:
        """Name inside the file."""
        whole = tuple(self.data.shape) == self.global_shape
        return self.key if whole else f"{self.key}@{','.join(map(str, self.offset))}"


def whole(key: str, data: torch.Tensor) -> Piece:
    """A piece that is its tensor."""
    return Piece(key=key, offset=(0,) * data.dim(), global_shape=tuple(data.shape), data=data)


def shared_out(sharded: dict[str, Any], ranks: int) -> dict[str, Any]:
    """The same pieces with other owners: each data-parallel rank writes about as many elements, instead of the first one all.

    The largest tensor comes first, and goes to the rank that has the least so far. All ranks find the same owners.

    Args:
        sharded: a megatron.core sharded state dict, name -> ShardedTensor or factory. Each replica_id ends in the rank in dp x cp.
        ranks: ranks in dp x cp.
    """
    elements, result = [0] * ranks, dict(sharded)
    for name in sorted(sharded, key=lambda name: (-sharded[name].data.numel(), name)):
        *others, replica = sharded[name].replica_id
        if any(others):  # another rank of tp or pp writes it
            continue
        owner = elements.index(min(elements))
        elements[owner] += sharded[name].data.numel()
        result[name] = replace(sharded[name], replica_id=(*others, (replica - owner) % ranks))
    return result


def owned_pieces(sharded: dict[str, Any]) -> list[Piece]:
    """The pieces this rank writes, from a megatron.core sharded state dict. Collective: checks that the pieces make up each tensor.

    Raises:
        ValueError: pieces overlap or leave gaps (a bug in a module's sharded_state_dict); on all ranks.
    """
    from megatron.core.dist_checkpointing.dict_utils import nested_values
    from megatron.core.dist_checkpointing.mapping import ShardedTensor, is_main_replica
    from megatron.core.dist_checkpointing.state_dict_utils import save_preprocess

    tensors, rest = save_preprocess(sharded, validate_access_integrity=False)
    assert not list(nested_values(rest)), "a sharded state dict holds tensors only"
    own, others = [], []
    for tensor in nested_values(tensors):
        assert isinstance(tensor, ShardedTensor), type(tensor)
        data = tensor.data.detach()
        piece = Piece(
            key=tensor.key,
            offset=tuple(tensor.global_offset),
            global_shape=tuple(tensor.global_shape),
            data=data.reshape((1,) * tensor.prepend_axis_num + tuple(data.shape)),
        )
        if is_main_replica(tensor.replica_id):
            own.append(piece)
        elif not tensor.replica_id[-1]:  # one rank of dp x cp speaks for all
            others.append(piece)
    _check_whole(own, others)
    return own


def _check_whole(own: list[Piece], others: list[Piece]) -> None:
    """Fails on all ranks where the pieces that ranks own do not make up each tensor that a rank holds. Collective."""
    told = [(piece.key, piece.global_shape, piece.offset, piece.data.numel()) for piece in own]
    told += [(piece.key, piece.global_shape, piece.offset, 0) for piece in others]
    found: dict[str, list[Any]] = {}
    for key, *about in (each for part in gather(told) for each in part):
        found.setdefault(key, []).append(about)
    for key, parts in found.items():
        shapes, offsets = {shape for shape, _, _ in parts}, [offset for _, offset, elements in parts if elements]
        held, needed = sum(elements for _, _, elements in parts), math.prod(parts[0][0])
        if len(shapes) > 1:
            raise ValueError(f"sharded_state_dict gives {key} the global shapes {sorted(shapes)}; all ranks must name the same one")
        if held != needed or len(set(offsets)) < len(offsets):
            raise ValueError(
                f"sharded_state_dict: ranks own {held} elements of {key} in {len(offsets)} pieces at {len(set(offsets))} places, expected "
                f"{needed} elements and no place twice; give each piece one replica whose replica_id is all zeros"
            )


def write(path: Path, pieces: Iterable[Piece]) -> Optional[str]:
    """Write one safetensors file, tensor by tensor, synced to disk.

    Args:
        path: file to create; its folder exists.
        pieces: what it holds. Nothing is written for none.

    Returns:
        Checksum of the file, or None when there was nothing to write.
    """
    held = list(pieces)
    if not held:
        return None
    global_shapes = json.dumps({piece.key: piece.global_shape for piece in held}, separators=(",", ":"))
    return write_tensors(path, [(piece.name, piece.data) for piece in held], {"global_shapes": global_shapes})


class Reader:
    """All shard files of one folder, read by key and block. Headers are read once; data is mapped, not copied whole.

    Args:
        folder: with the files.
        on_part: called when a tensor, or a block of one, is asked for.

    Raises:
        ValueError: a file is no shard, or a tensor has no piece.
    """

    def __init__(self, folder: Path, on_part: Callable[[], None] = nothing) -> None:
        self.folder, self._on_part = folder, on_part
        self._pieces: dict[str, list[tuple[SafetensorsFile, str, tuple[int, ...], tuple[int, ...]]]] = {}
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._dtypes: dict[str, torch.dtype] = {}
        self._read: set[str] = set()
        for path in sorted(folder.glob("*.safetensors")):
            file = SafetensorsFile(path)
            try:
                self._add(file)
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise ValueError(f"{path} is no shard of a checkpoint ({error!r}); copy the file again") from error
        missing = sorted(self._shapes.keys() ^ self._pieces.keys())
        if missing:
            raise ValueError(f"{folder}: {missing[0]} has no piece or no shape; copy the files again")

    def _add(self, file: SafetensorsFile) -> None:
        shapes = json.loads(file.metadata["global_shapes"])
        self._shapes.update({key: tuple(map(operator.index, shape)) for key, shape in shapes.items()})
        for name, entry in file.entries.items():
            key, _, offset = name.rpartition("@")
            key, at = (key, tuple(map(int, offset.split(",")))) if key else (name, (0,) * len(entry.shape))
            self._dtypes[key] = entry.dtype
            self._pieces.setdefault(key, []).append((file, name, at, entry.shape))

    def keys(self) -> set[str]:
        """Keys of the global tensors held."""
        return set(self._shapes)

    def unread(self) -> set[str]:
        """Keys of which no block was read so far."""
        return set(self._shapes) - self._read

    def shape(self, key: str) -> tuple[int, ...]:
        """Global shape of a tensor."""
        return self._shapes[key]

    def tensor(self, key: str) -> torch.Tensor:
        """A whole tensor, in its stored dtype. Where one file holds it, it is a view of the mapped file; do not write to it."""
        self._on_part()
        shape, pieces = self._shapes[key], self._pieces[key]
        if len(pieces) == 1 and pieces[0][3] == shape:
            self._read.add(key)
            return pieces[0][0].tensor(pieces[0][1])
        return self.block(key, (0,) * len(shape), shape, self._dtypes[key])

    def whole(self) -> Tensors:
        """All tensors by key, sorted, each read when it is asked for."""
        return Made({key: Spec(self._dtypes[key], self._shapes[key]) for key in sorted(self._shapes)}, self.tensor)

    def block(self, key: str, offset: tuple[int, ...], shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        """A block of a tensor on the CPU, whatever pieces it was stored in.

        Raises:
            ValueError: the stored pieces do not cover the block.
        """
        self._on_part()
        self._read.add(key)
        result = torch.empty(shape, dtype=dtype)
        filled = 0
        for file, name, at, size in self._pieces[key]:
            low = [max(a, b) for a, b in zip(at, offset)]
            high = [min(a + n, b + m) for a, n, b, m in zip(at, size, offset, shape)]
            if any(a >= b for a, b in zip(low, high)):
                continue
            target = result[tuple(slice(a - o, b - o) for a, b, o in zip(low, high, offset))]
            target.copy_(file.tensor(name)[tuple(slice(a - o, b - o) for a, b, o in zip(low, high, at))])
            filled += target.numel()
        if filled != result.numel():
            raise ValueError(f"{self.folder}: {key} holds {filled} of {result.numel()} elements at {offset}; the checkpoint is not whole")
        return result


def stored(
    reader: Reader, key: str, offset: tuple[int, ...], shape: tuple[int, ...], global_shape: tuple[int, ...], dtype: torch.dtype
) -> torch.Tensor:
    """A block of a tensor that the model needs, on the CPU.

    Args:
        reader: the folder.
        key: of the tensor.
        offset: index of the block's first element in the global tensor.
        shape: of the block, with as many dims as the global tensor.
        global_shape: what the model needs.
        dtype: of the result.

    Raises:
        ValueError: the key is missing or has another global shape; the message names it.
    """
    if key not in reader.keys():
        raise ValueError(f"{reader.folder} has no tensor {key}; it was written for another architecture")
    if reader.shape(key) != global_shape:
        raise ValueError(f"{reader.folder}: {key} has shape {reader.shape(key)}, the model needs {global_shape}")
    return reader.block(key, offset, shape, dtype)


def read(reader: Reader, sharded: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Load what a megatron.core sharded state dict asks for.

    Args:
        reader: the folder.
        sharded: name -> ShardedTensor or factory; left unchanged.

    Returns:
        name -> local tensor on the CPU, in the dtype that `sharded` asks for.

    Raises:
        ValueError: a key is missing or has another global shape; the message names it.
    """
    from megatron.core.dist_checkpointing.dict_utils import dict_list_map_inplace
    from megatron.core.dist_checkpointing.mapping import ShardedTensor, apply_factory_merges
    from megatron.core.dist_checkpointing.state_dict_utils import load_preprocess

    def load(tensor: ShardedTensor) -> torch.Tensor:
        shape = (1,) * tensor.prepend_axis_num + tuple(tensor.local_shape)
        block = stored(reader, tensor.key, tuple(tensor.global_offset), shape, tuple(tensor.global_shape), tensor.dtype)
        return block.reshape(tensor.local_shape)

    wanted, _, factories = load_preprocess(sharded)
    dict_list_map_inplace(load, wanted)
    return apply_factory_merges(wanted, factories)
