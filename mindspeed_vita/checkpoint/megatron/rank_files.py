"""Reads the weights of a MindSpeed-LLM or Megatron checkpoint (--ckpt-format torch): files of all ranks become whole native tensors."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional

import torch

from mindspeed_vita.checkpoint.mapping.mindspeed_names import native_name
from mindspeed_vita.checkpoint.megatron.layout import LAYER, is_cut, join
from mindspeed_vita.checkpoint.megatron.pickles import read_pickle
from mindspeed_vita.files.tensors import Made, Spec, Tensors, same

TRACKER = "latest_checkpointed_iteration.txt"
RANK_FILE = "model_optim_rng.pt"
METADATA = ".metadata"
"""In the folder of an iteration that --ckpt-format torch_dist wrote."""
_RANK = re.compile(r"mp_rank_(\d+)(?:_(\d+))?")
_TIED = "language.output_layer.weight"


@dataclass(frozen=True, kw_only=True)
class SavedLayout:
    """How a checkpoint was cut, and what it holds besides weights."""

    tp: int
    pp: int
    has_optimizer: bool
    """The optimizer's state and its schedule are there."""
    has_random_state: bool
    virtual_stages: int = 1
    """Chunks of each stage, in an interleaved pipeline."""


def saved_layout(folder: str | Path, step: Optional[int] = None) -> SavedLayout:
    """What Megatron's loader depends on, from the names of the files and from the first rank's keys.

    Args:
        folder: a run's folder, or an iteration's.
        step: iteration to look at; None takes the latest.

    Raises:
        ValueError: there is no such checkpoint, or the sizes differ from stage to stage.
    """
    ranks = _rank_files(Path(folder) / f"iter_{step:07d}" if step is not None else iteration_of(Path(folder)))
    tp, pp = 1 + max(tensor for tensor, _ in ranks), 1 + max(stage for _, stage in ranks)
    if len(ranks) != tp * pp:
        raise ValueError(f"{folder}: {len(ranks)} files of ranks, but tp={tp} pp={pp} by their names; copy all mp_rank folders")
    content = read_pickle(ranks[0, 0])
    return SavedLayout(
        tp=tp,
        pp=pp,
        has_optimizer="opt_param_scheduler" in content,
        has_random_state="rng_state" in content,
        virtual_stages=max(1, len(_chunk_keys(content))),
    )


def is_mindspeed(folder: Path) -> bool:
    """Whether a folder holds what MindSpeed-LLM saved: a run's folder, or one of its iterations."""
    return (folder / TRACKER).is_file() or (folder / METADATA).is_file() or any(folder.glob(f"mp_rank_*/{RANK_FILE}"))


def read_rank(path: Path) -> list[dict[str, torch.Tensor]]:
    """The weights of one rank's file, by the names in it; mapped, not read whole.

    Returns:
        Those of each chunk of an interleaved pipeline, else one.

    Raises:
        ValueError: it is no checkpoint's file.
    """
    content = read_pickle(path)
    models = [content[key] for key in _chunk_keys(content)] or [content.get("model")]
    if not all(isinstance(model, dict) for model in models):
        raise ValueError(f"{path} has no weights under the key 'model'; expected what MindSpeed-LLM or Megatron saves")
    return [{str(name): value.detach() for name, value in model.items() if isinstance(value, torch.Tensor)} for model in models]


def _chunk_keys(content: Mapping[str, Any]) -> list[str]:
    """Keys of the chunks' weights, in order: Megatron writes model0, model1, ... where a stage has several."""
    return [key for number in range(len(content)) if (key := f"model{number}") in content]


def read_full_weights(folder: str | Path, *, tied: bool = False) -> Tensors:
    """Whole tensors under native names, each joined when it is asked for.

    Args:
        folder: a run's folder (its latest iteration is taken) or an iteration's.
        tied: the output layer shares the embedding table, of which the last stage then holds a copy.

    Raises:
        ValueError: there is no such checkpoint, a rank's file is missing, or parts do not fit each other.
    """
    held: dict[str, list[torch.Tensor]] = {}
    first_layer = 0
    for parts in chunks_in_order(folder):
        for name in parts[0]:
            held[renumbered(name, first_layer)] = [part[name] for part in parts]
        first_layer += num_layers(parts[0])
    if tied and _TIED in held:
        table = held["language.embedding.word_embeddings.weight"]
        if not all(map(same, held.pop(_TIED), table)):
            raise ValueError(f"{folder}: the recipe ties the embeddings, but the output layer differs from them; set tie_embeddings: false")
    return Made({name: _joined_spec(name, parts) for name, parts in held.items()}, lambda name: join(name, held[name]))


def chunks_in_order(folder: str | Path) -> Iterator[list[dict[str, torch.Tensor]]]:
    """The weights of each stage under native names, one entry for each tensor-parallel rank, in the order of the model's layers.

    In an interleaved pipeline the first chunks of all stages come before the second ones.

    Raises:
        ValueError: as stage_files, or the ranks of a stage hold different weights.
    """
    stages = [[native_weights(path) for path in files] for files in stage_files(folder)]
    for chunk in range(len(stages[0][0])):
        for stage, ranks in enumerate(stages):
            if any(len(chunks) != len(stages[0][0]) for chunks in ranks):
                raise ValueError(f"{folder}: the stages have different numbers of chunks; the files are not of one checkpoint")
            parts = [chunks[chunk] for chunks in ranks]
            for tensor, part in enumerate(parts):
                if part.keys() != parts[0].keys():
                    other = sorted(part.keys() ^ parts[0].keys())[0]
                    raise ValueError(f"{folder}: tensor-parallel ranks 0 and {tensor} of stage {stage} hold different weights ({other})")
            yield parts


def _joined_spec(name: str, parts: list[torch.Tensor]) -> Spec:
    if not is_cut(name):  # compares the parts, which are small or a tower's
        return Spec.of(join(name, parts))
    return Spec.of(join(name, [torch.empty_like(part, device="meta") for part in parts]))


def saved_recipe(folder: str | Path) -> Optional[dict[str, Any]]:
    """The recipe that this package wrote with the weights, as nested plain values; None in checkpoints of others.

    Raises:
        ValueError: there is no such checkpoint, or the recipe in it cannot be read.
    """
    content = run_state(folder)
    return None if content is None else content.get("recipe")


def run_state(folder: str | Path) -> Optional[dict[str, Any]]:
    """All that this package wrote with the weights: the recipe and, where a run saved them, its data's state. None in others' checkpoints.

    Raises:
        ValueError: there is no such checkpoint, or what was written cannot be read.
    """
    ranks = rank_files(folder)
    state = read_rank(next(iter(ranks.values())))[0].get("_extra_state")
    if state is None:
        return None
    try:
        content = json.loads(bytes(state.tolist()).decode("utf-8"))
        return None if content is None else dict(content)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{folder}: the recipe that the weights carry cannot be read ({error!r}); copy the files again") from error


def rank_files(folder: str | Path) -> dict[tuple[int, int], Path]:
    """(tensor-parallel rank, pipeline stage) -> file, of a run's latest iteration or of an iteration's folder.

    Raises:
        ValueError: there are none.
    """
    return _rank_files(iteration_of(Path(folder)))


def iteration_of(folder: Path) -> Path:
    """The folder of a run's latest iteration, or the folder itself where it is one.

    Raises:
        ValueError: the file that names the iteration is damaged.
    """
    tracker = folder / TRACKER
    if not tracker.is_file():
        return folder
    latest = tracker.read_text(encoding="utf-8", errors="replace").strip()
    if latest != "release" and not latest.isdecimal():
        raise ValueError(f"{tracker} says {latest[:40]!r}; expected a number of steps, or release")
    return folder / ("release" if latest == "release" else f"iter_{int(latest):07d}")


def _rank_files(folder: Path) -> dict[tuple[int, int], Path]:
    """(tensor-parallel rank, pipeline stage) -> file."""
    found = {}
    for path in folder.glob(f"mp_rank_*/{RANK_FILE}"):
        match = _RANK.fullmatch(path.parent.name)
        if match is not None:
            found[int(match[1]), int(match[2] or 0)] = path
    if not found:
        raise ValueError(f"{folder} holds no mp_rank_*/model_optim_rng.pt; expected what MindSpeed-LLM saves with --ckpt-format torch")
    return found


def stage_files(folder: str | Path) -> list[list[Path]]:
    """The files of each pipeline stage, in the order of the tensor-parallel ranks.

    Raises:
        ValueError: there are none, or a rank has no file.
    """
    ranks = rank_files(folder)
    tp, pp = 1 + max(tensor for tensor, _ in ranks), 1 + max(stage for _, stage in ranks)
    for stage in range(pp):
        missing = [tensor for tensor in range(tp) if (tensor, stage) not in ranks]
        if missing:
            raise ValueError(f"{folder}: tensor-parallel rank {missing[0]} of pipeline stage {stage} has no file; copy all mp_rank folders")
    return [[ranks[tensor, stage] for tensor in range(tp)] for stage in range(pp)]


def native_weights(path: Path) -> list[dict[str, torch.Tensor]]:
    """The weights of each chunk in a rank's file under native names, in the order of the file. Layers count from 0 in each chunk.

    Raises:
        ValueError: it is no checkpoint's file.
    """
    return [
        {native: value for name, value in chunk.items() if (native := native_name(name)) and not native.endswith("_extra_state")}
        for chunk in read_rank(path)
    ]


def num_layers(names: Iterable[str]) -> int:
    """Decoder layers among native names."""
    return len({match[2] for name in names if (match := LAYER.fullmatch(name))})


def renumbered(name: str, first_layer: int) -> str:
    """A stage's name as the whole model has it.

    Args:
        name: native, with the stage's own number of a decoder layer.
        first_layer: decoder layers of the stages before.
    """
    match = LAYER.fullmatch(name)
    return f"{match[1]}{int(match[2]) + first_layer}{match[3]}" if match else name
