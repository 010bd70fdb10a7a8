"""A folder of safetensors files: read lazily as a mapping from name to tensor; the plan of one, and its index."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import torch

from mindspeed_vita.files.safetensors_file import SafetensorsFile
from mindspeed_vita.files.shard_stream import ShardFile, cut
from mindspeed_vita.files.tensors import Spec, Tensors
from mindspeed_vita.files.writing import write_bytes

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"


class SafetensorsFolder(Tensors):
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
                if name in self._held:
                    raise ValueError(f"{folder} holds {name} twice, once with the prefix {prefix!r}; remove one of them")
                self._held[name] = (file, there)
        self._specs = {name: Spec(file.entries[there].dtype, file.entries[there].shape) for name, (file, there) in self._held.items()}

    def __getitem__(self, name: str) -> torch.Tensor:
        file, there = self._held[name]
        return file.tensor(there)

    def specs(self) -> Mapping[str, Spec]:
        """Type and shape of every tensor, from the headers."""
        return self._specs

    def files(self) -> list[Path]:
        """The files that hold them."""
        return sorted({file.path for file, _ in self._held.values()})


def plan_shards(specs: Mapping[str, Spec], *, max_shard_bytes: int) -> list[ShardFile]:
    """The files of a Hugging Face folder, in transformers' names: model.safetensors alone, or model-XXXXX-of-XXXXX.safetensors.

    Args:
        specs: all tensors in order.
        max_shard_bytes: a single tensor may exceed it.
    """
    parts = cut(specs, max_shard_bytes)
    names = [SINGLE] if len(parts) == 1 else [f"model-{i:05d}-of-{len(parts):05d}.safetensors" for i in range(1, len(parts) + 1)]
    return [ShardFile(name, part, {"format": "pt"}) for name, part in zip(names, parts)]


def write_index(folder: Path, files: Sequence[ShardFile]) -> None:
    """Writes the index, where there is more than one file.

    Raises:
        OSError: naming the file.
    """
    if len(files) == 1:
        return
    weight_map = {name: file.name for file in files for name in file.tensors}
    total = sum(spec.nbytes for file in files for spec in file.tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    write_bytes(folder / INDEX, (json.dumps(index, indent=2) + "\n").encode())


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
