"""A folder of safetensors files: read lazily as a mapping from name to tensor, and written shard by shard with an index."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import torch

from mindspeed_vita.files.safetensors_file import SafetensorsFile, write_tensors
from mindspeed_vita.files.writing import write_bytes

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"


class SafetensorsFolder(Mapping[str, torch.Tensor]):
    """Tensors of a Hugging Face folder. They are views of the mapped files, so they take no memory of their own.

    Args:
        folder: holds model.safetensors, or shards and their index.
        ignore: exact names to leave out.
        prefix: cut off names that start with it.

    Raises:
        ValueError: no safetensors files, the index is wrong, or a shard is missing, broken or lacks a tensor of the index.
    """

    def __init__(self, folder: str | Path, ignore: Iterable[str] = (), prefix: str = "") -> None:
        self.folder = Path(folder)
        left_out = set(ignore)
        self._held: dict[str, tuple[SafetensorsFile, str]] = {}
        for there, file in _weight_map(self.folder).items():
            name = there.removeprefix(prefix)
            if name not in left_out:
                self._held[name] = (file, there)

    def __getitem__(self, name: str) -> torch.Tensor:
        file, there = self._held[name]
        return file.tensor(there)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of every tensor, from the headers."""
        return {name: file.entries[there].shape for name, (file, there) in self._held.items()}

    def __iter__(self) -> Iterator[str]:
        return iter(self._held)

    def __len__(self) -> int:
        return len(self._held)


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


def _weight_map(folder: Path) -> dict[str, SafetensorsFile]:
    """The file of every tensor, in the order of the index or of the single file."""
    index = folder / INDEX
    if index.is_file():
        weight_map = _read_index(index)
        missing = sorted({file for file in weight_map.values() if not (folder / file).is_file()})
        if missing:
            raise ValueError(f"{folder} lacks {', '.join(missing[:4])} of its index; download or copy the folder again")
        files = {file: SafetensorsFile(folder / file) for file in sorted(set(weight_map.values()))}
        for file, opened in files.items():
            lacking = [name for name, at in weight_map.items() if at == file and name not in opened.entries]
            if lacking:
                raise ValueError(f"{folder / file} lacks {', '.join(lacking[:4])}, which its index promises; copy it again")
        return {name: files[file] for name, file in weight_map.items()}
    if (folder / SINGLE).is_file():
        single = SafetensorsFile(folder / SINGLE)
        return dict.fromkeys(single.entries, single)
    pickles = sorted(path.name for path in folder.glob("*.bin"))
    if pickles:
        raise ValueError(f"{folder} holds pickled weights ({pickles[0]}); expected safetensors: save it again with save_pretrained")
    raise ValueError(f"{folder} holds neither {SINGLE} nor {INDEX}; expected a Hugging Face model folder")


def _read_index(index: Path) -> dict[str, str]:
    try:
        weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        if any(not isinstance(file, str) or Path(file).name != file for file in weight_map.values()):
            raise ValueError("its weight_map names files outside the folder")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{index} is not a whole index: {error!r}; download or copy it again") from error
    return dict(weight_map)
