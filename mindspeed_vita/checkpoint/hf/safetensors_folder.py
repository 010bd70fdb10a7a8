"""A folder of safetensors shards: read lazily as a mapping from name to tensor, and written shard by shard with an index."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from mindspeed_vita.checkpoint.native.atomic import write_bytes
from mindspeed_vita.checkpoint.native.shards import write_tensors

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"


class SafetensorsFolder(Mapping[str, torch.Tensor]):
    """Tensors of a folder; each access reads one tensor from disk, so memory stays at what the caller keeps.

    Args:
        folder: holds model.safetensors, or shards and their index.
        ignore: exact names to leave out.
        prefix: cut off names that start with it.

    Raises:
        ValueError: no safetensors files, or a shard of the index is missing or broken.
    """

    def __init__(self, folder: str | Path, ignore: Iterable[str] = (), prefix: str = "") -> None:
        self.folder = Path(folder)
        left_out = set(ignore)
        stored = {name.removeprefix(prefix): (name, file) for name, file in _weight_map(self.folder).items()}
        self._names = {name: there for name, (there, _) in stored.items() if name not in left_out}
        self._files = {name: file for name, (_, file) in stored.items() if name not in left_out}

    def __getitem__(self, name: str) -> torch.Tensor:
        with _open(self.folder / self._files[name]) as shard:
            try:
                return shard.get_tensor(self._names[name])
            except SafetensorError as error:
                raise ValueError(f"{self.folder / self._files[name]} lacks {name}, which its index promises: {error}") from error

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of every tensor, from the headers.

        Raises:
            ValueError: a file is broken, or lacks a tensor of the index.
        """
        found: dict[str, tuple[int, ...]] = {}
        for file in sorted(set(self._files.values())):
            with _open(self.folder / file) as shard:
                held = set(shard.keys())
                names = [name for name, at in self._files.items() if at == file]
                lacking = [self._names[name] for name in names if self._names[name] not in held]
                if lacking:
                    raise ValueError(f"{self.folder / file} lacks {', '.join(lacking[:4])}, which its index promises; copy it again")
                found |= {name: tuple(shard.get_slice(self._names[name]).get_shape()) for name in names}
        return {name: found[name] for name in self._files}

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)


def write_shards(tensors: Iterable[tuple[str, torch.Tensor]], folder: Path, *, max_shard_bytes: int) -> list[Path]:
    """Write tensors in order, a new shard before one would grow beyond `max_shard_bytes`; memory stays at one shard.

    Args:
        tensors: names and tensors; consumed once.
        folder: exists already.
        max_shard_bytes: a single tensor may exceed it.

    Returns:
        The shards written: model.safetensors alone, or model-XXXXX-of-XXXXX.safetensors with an index.

    Raises:
        OSError: naming the file.
    """
    shards: list[Path] = []
    names: list[list[str]] = []
    pending: dict[str, torch.Tensor] = {}
    size = total = 0

    def flush() -> None:
        path = folder / f"part-{len(shards):05d}.safetensors"
        write_tensors(path, list(pending.items()), {"format": "pt"})
        shards.append(path)
        names.append(list(pending))
        pending.clear()

    for name, tensor in tensors:
        bytes_ = tensor.numel() * tensor.element_size()
        if pending and size + bytes_ > max_shard_bytes:
            flush()
            size = 0
        # A copy: what it is a view of may be freed.
        pending[name] = tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        size += bytes_
        total += bytes_
    flush()
    if len(shards) == 1:
        return [shards[0].rename(folder / SINGLE)]
    renamed = [path.rename(folder / f"model-{i:05d}-of-{len(shards):05d}.safetensors") for i, path in enumerate(shards, 1)]
    weight_map = {name: path.name for path, group in zip(renamed, names) for name in group}
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    write_bytes(folder / INDEX, (json.dumps(index, indent=2) + "\n").encode())
    return renamed


def _weight_map(folder: Path) -> dict[str, str]:
    index = folder / INDEX
    if index.is_file():
        weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        missing = sorted({file for file in weight_map.values() if not (folder / file).is_file()})
        if missing:
            raise ValueError(f"{folder} lacks {', '.join(missing[:4])} of its index; download or copy the folder again")
        return weight_map
    if (folder / SINGLE).is_file():
        with _open(folder / SINGLE) as shard:
            return dict.fromkeys(shard.keys(), SINGLE)
    pickles = sorted(path.name for path in folder.glob("*.bin"))
    if pickles:
        raise ValueError(f"{folder} holds pickled weights ({pickles[0]}); expected safetensors: save it again with save_pretrained")
    raise ValueError(f"{folder} holds neither {SINGLE} nor {INDEX}; expected a Hugging Face model folder")


def _open(path: Path) -> safe_open:
    try:
        return safe_open(path, framework="pt")
    except SafetensorError as error:
        raise ValueError(f"{path} is not a whole safetensors file: {error}; copy it again") from error
