"""Reads the weights of a MindSpeed-LLM checkpoint (--ckpt-format torch) on any machine: files of all ranks become whole native tensors.

Its files are pickles that name classes of Megatron's. Only tensors are taken out of them: every other class becomes an inert stand-in.
"""

from __future__ import annotations

import json
import pickle
import re
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Optional

import torch

from mindspeed_vita.checkpoint.mapping.mindspeed_names import native_name

_TRACKER = "latest_checkpointed_iteration.txt"
_RANK = re.compile(r"mp_rank_(\d+)(?:_(\d+))?")
_LAYER = re.compile(r"(language\.decoder\.layers\.)(\d+)(\..*)")
_SAFE = {
    ("collections", "OrderedDict"): OrderedDict,
    ("torch._utils", "_rebuild_tensor_v2"): torch._utils._rebuild_tensor_v2,
    ("torch._utils", "_rebuild_parameter"): torch._utils._rebuild_parameter,
    ("torch", "Size"): torch.Size,
}


class _Inert:
    """Stands for an object that is not wanted; whatever it is made of is dropped."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


class _TensorsOnly(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if module == "torch" and isinstance(getattr(torch, name, None), torch.dtype):
            return getattr(torch, name)
        return _SAFE.get((module, name), _Inert)


@dataclass(frozen=True, kw_only=True)
class SavedLayout:
    """How a checkpoint was cut, and what it holds besides weights."""

    tp: int
    pp: int
    has_optimizer: bool
    """The optimizer's state and its schedule are there."""
    has_random_state: bool


def saved_layout(folder: str | Path, step: Optional[int] = None) -> SavedLayout:
    """What Megatron's loader depends on, from the names of the files and from the first rank's keys.

    Args:
        folder: a run's folder, or an iteration's.
        step: iteration to look at; None takes the latest.

    Raises:
        ValueError: there is no such checkpoint, or the sizes differ from stage to stage.
    """
    ranks = _rank_files(Path(folder) / f"iter_{step:07d}" if step is not None else _iteration(Path(folder)))
    tp, pp = 1 + max(tensor for tensor, _ in ranks), 1 + max(stage for _, stage in ranks)
    if len(ranks) != tp * pp:
        raise ValueError(f"{folder}: {len(ranks)} files of ranks, but tp={tp} pp={pp} by their names; copy all mp_rank folders")
    keys = _content(ranks[0, 0]).keys()
    return SavedLayout(tp=tp, pp=pp, has_optimizer="opt_param_scheduler" in keys, has_random_state="rng_state" in keys)


def is_mindspeed(folder: Path) -> bool:
    """Whether a folder holds what MindSpeed-LLM saved: a run's folder, or one of its iterations."""
    return (folder / _TRACKER).is_file() or any(folder.glob("mp_rank_*/model_optim_rng.pt"))


def read_rank(path: Path) -> dict[str, torch.Tensor]:
    """The weights of one rank's file, by the names in it; mapped, not read whole."""
    return {name: value.detach() for name, value in _content(path)["model"].items() if isinstance(value, torch.Tensor)}


def _content(path: Path) -> dict[str, Any]:
    reader = SimpleNamespace(Unpickler=_TensorsOnly, __name__=__name__)
    return torch.load(path, map_location="cpu", weights_only=False, pickle_module=reader, mmap=True)


def read_full_weights(folder: str | Path) -> dict[str, torch.Tensor]:
    """Whole tensors under native names.

    Args:
        folder: a run's folder (its latest iteration is taken) or an iteration's.

    Raises:
        ValueError: there is no such checkpoint, a rank's file is missing, or parts do not fit each other.
    """
    ranks = _rank_files(_iteration(Path(folder)))
    tensor_size = 1 + max(tensor for tensor, _ in ranks)
    whole: dict[str, torch.Tensor] = {}
    first_layer = 0
    for stage in range(1 + max(stage for _, stage in ranks)):
        missing = [tensor for tensor in range(tensor_size) if (tensor, stage) not in ranks]
        if missing:
            raise ValueError(f"{folder}: tensor-parallel rank {missing[0]} of pipeline stage {stage} has no file; copy all mp_rank folders")
        parts = [_native(read_rank(ranks[tensor, stage])) for tensor in range(tensor_size)]
        layers = {int(match[2]) for name in parts[0] if (match := _LAYER.fullmatch(name))}
        for name in parts[0]:
            whole[_renumbered(name, first_layer)] = join(name, [part[name] for part in parts])
        first_layer += len(layers)
    return whole


def saved_recipe(folder: str | Path) -> Optional[dict[str, Any]]:
    """The recipe that this package's plugin wrote with the weights, as nested plain values; None in checkpoints of others."""
    ranks = _rank_files(_iteration(Path(folder)))
    state = read_rank(next(iter(ranks.values()))).get("_extra_state")
    return None if state is None else json.loads(bytes(state.tolist())).get("recipe")


def join(name: str, parts: list[torch.Tensor]) -> torch.Tensor:
    """A whole tensor from those of the tensor-parallel ranks. A tower's may be whole on every rank, or split over them.

    Raises:
        ValueError: parts that should be the same differ.
    """
    if len(parts) == 1:
        return parts[0]
    if name.startswith("language.") and name.endswith("mlp.linear_fc1.weight"):
        gates, ups = zip(*(part.chunk(2) for part in parts))
        return torch.cat([*gates, *ups])
    if name.endswith(("word_embeddings.weight", "output_layer.weight")):
        return torch.cat(parts)
    is_same = all(torch.equal(part, parts[0]) for part in parts[1:])
    split = name.startswith("language.") or not is_same
    if split and name.endswith(("linear_qkv.weight", "linear_qkv.bias", "linear_fc1.weight", "linear_fc1.bias")):
        return torch.cat(parts)
    if split and name.endswith(("linear_proj.weight", "linear_fc2.weight")):
        return torch.cat(parts, dim=1)
    if not is_same:
        raise ValueError(f"{name} should be the same on every tensor-parallel rank, and is not; the files are not of one checkpoint")
    return parts[0]


def _iteration(folder: Path) -> Path:
    tracker = folder / _TRACKER
    if not tracker.is_file():
        return folder
    latest = tracker.read_text(encoding="utf-8").strip()
    return folder / ("release" if latest == "release" else f"iter_{int(latest):07d}")


def _rank_files(folder: Path) -> dict[tuple[int, int], Path]:
    """(tensor-parallel rank, pipeline stage) -> file."""
    found = {}
    for path in folder.glob("mp_rank_*/model_optim_rng.pt"):
        match = _RANK.fullmatch(path.parent.name)
        if match is not None:
            found[int(match[1]), int(match[2] or 0)] = path
    if not found:
        raise ValueError(f"{folder} holds no mp_rank_*/model_optim_rng.pt; expected what MindSpeed-LLM saves with --ckpt-format torch")
    return found


def _native(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    named = ((native_name(name), value) for name, value in weights.items())
    return {name: value for name, value in named if name is not None and not name.endswith("_extra_state")}


def _renumbered(name: str, first_layer: int) -> str:
    match = _LAYER.fullmatch(name)
    return f"{match[1]}{int(match[2]) + first_layer}{match[3]}" if match else name
