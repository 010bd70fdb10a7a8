"""Native checkpoints: sharded, resharding across tp, pp, cp and dp, visible only when whole, checksummed.

A step folder holds recipe.json, state.json, rng.safetensors, weights/*.safetensors, optimizer/*.safetensors, checksums.json.
That of a model with adapters holds the adapters only.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Optional

import torch

from mindspeed_vita.checkpoint.lineage import Lineage
from mindspeed_vita.checkpoint.native import atomic, optimizer_state, shards
from mindspeed_vita.checkpoint.native.adapters import check_adapters, sharded_adapters
from mindspeed_vita.checkpoint.native.full_weights import open_full_weights, read_full_weights, save_full_weights
from mindspeed_vita.checkpoint.native.ranks import SaveFailed, gather, rank, world
from mindspeed_vita.checkpoint.native.room import check_room
from mindspeed_vita.checkpoint.native.step_folder import (
    TrainState,
    check_architecture,
    check_training,
    find,
    latest,
    load_state,
    saved_recipe,
)
from mindspeed_vita.checkpoint.native.whole_weights import WholeTensors
from mindspeed_vita.checkpoint.native.writer import Digests, StepWriter
from mindspeed_vita.config import ModelConfig, Recipe
from mindspeed_vita.models.lora import has_adapters, is_adapter
from mindspeed_vita.platform import megatron_compat
from mindspeed_vita.platform.host_copies import host_copies

__all__ = [
    "SaveFailed",
    "TrainState",
    "check_architecture",
    "find",
    "latest",
    "load",
    "load_full_weights",
    "load_rng",
    "load_state",
    "load_weights",
    "open_full_weights",
    "read_full_weights",
    "save",
    "save_full_weights",
    "save_weights",
    "saved_recipe",
    "start_save",
]


def start_save(
    directory: str | Path,
    state: TrainState,
    *,
    model: torch.nn.Module,
    optimizer: Any,
    recipe: Recipe,
    rng: Mapping[str, torch.Tensor],
    keep: int,
    background: bool = False,
    allowed: Optional[Callable[[], None]] = None,
    lineage: Optional[Lineage] = None,
) -> StepWriter:
    """Begins to write one step; its `finish` returns when it is visible. Collective; every rank takes part.

    Args:
        directory: folder of the run.
        state: where the run stands; the same on every rank.
        model: the model without its DDP wrapper.
        optimizer: megatron.core DistributedOptimizer over it.
        recipe: what the run was told.
        rng: this rank's random states by name.
        keep: newest steps kept; 0 keeps all.
        background: copy this rank's share of weights and optimizer to host memory, and write and publish that in a thread of its own
            while training goes on.
        allowed: with background, what the first rank calls before it publishes (StepWriter).
        lineage: where the run's weights come from; on the first rank.

    Raises:
        SaveFailed: the folder cannot be made, or the disk has no room.
    """
    from megatron.core import parallel_state

    weights = _sharded_weights(model)
    group = parallel_state.get_data_parallel_group(with_context_parallel=True)
    copies = host_copies(next(model.parameters()).device)
    hold = copies.to_host if background else torch.Tensor.detach
    held = list(optimizer_state.pieces(optimizer, model, weights, group, hold))
    own = [replace(piece, data=hold(piece.data)) for piece in shards.owned_pieces(shards.shared_out(weights, group.size()))]
    check_room(Path(directory), state.step, (*held, *own))
    if background:
        copies.arrive()  # the next step changes what they were made of
    name = f"rank_{rank():05d}.safetensors"

    def write(temp: Path) -> Digests:
        return {part: shards.write(temp / part, pieces) for part, pieces in ((f"weights/{name}", own), (f"optimizer/{name}", held))}

    told = None if lineage is None else replace(lineage, step=state.step)
    parts: dict[str, Any] = {"state": asdict(state), "rng": rng, "keep": keep, "lineage": told}
    return StepWriter(Path(directory), state.step, recipe, write, **parts, background=background, allowed=allowed)


def save(directory: str | Path, state: TrainState, **arguments: Any) -> Path:
    """Writes one step and waits for it; arguments as start_save. Collective; every rank learns of a failure.

    Raises:
        SaveFailed: the disk is full or not writable. The temporary folder is gone, earlier steps are untouched.
    """
    return start_save(directory, state, **arguments).finish()


def save_weights(directory: str | Path, model: torch.nn.Module, recipe: Recipe, *, step: int = 0) -> Path:
    """Write a step that holds weights only, to start from (`checkpoint.init_from`). Collective.

    Raises:
        SaveFailed: as `save`.
    """
    from megatron.core import parallel_state

    ranks = parallel_state.get_data_parallel_world_size(with_context_parallel=True)
    own = shards.owned_pieces(shards.shared_out(_sharded_weights(model), ranks))
    check_room(Path(directory), step, own)
    name = f"weights/rank_{rank():05d}.safetensors"
    return StepWriter(Path(directory), step, recipe, lambda temp: {name: shards.write(temp / name, own)}).finish()


def load(
    folder: str | Path,
    *,
    model: torch.nn.Module,
    optimizer: Any,
    recipe: Recipe,
    fingerprint: str,
    with_changes: bool = False,
    on_part: Callable[[], None] = atomic.nothing,
) -> TrainState:
    """Resume: weights, optimizer and state. Collective.

    Args:
        folder: a step folder.
        model: the model without its DDP wrapper.
        optimizer: a fresh DistributedOptimizer over it.
        recipe: what this run was told.
        fingerprint: of this run's data.
        with_changes: settings of optimisation may be others than before, where weights and optimizer allow it.
        on_part: called after each part of the work; a load may take long.

    Raises:
        ValueError: another architecture, other settings of optimisation, other data, or weights only.
        atomic.DamagedCheckpoint: a file is missing or differs from its checksum.
    """
    folder = Path(folder)
    _verify(folder, on_part)
    state = load_state(folder)
    check_architecture(folder, recipe.model, resume=True)
    check_training(folder, recipe, with_changes=with_changes)
    check_adapters(folder, saved_recipe(folder), recipe)
    if state.fingerprint != fingerprint:
        raise ValueError(
            f"{folder} was written with other data (fingerprint {state.fingerprint[:12]}, this run has {fingerprint[:12]}): the mixture, "
            f"its files, the tokenizer, the template or a setting of the data section changed. Restore them to resume, or start a run in "
            f"another folder with checkpoint.init_from={folder} (weights only)"
        )
    weights, reader = (shards.Reader(folder / part, on_part) for part in ("weights", "optimizer"))
    _copy_weights(weights, model, str(folder), base=False)
    optimizer_state.load_exact_weights(model, _sharded_weights(model), reader)
    optimizer.reload_model_params()
    updates = state.step - len(state.skipped_steps)
    optimizer_state.load(optimizer, model, _sharded_weights(model), reader, updates, weights=weights)
    on_part()
    return state


def load_weights(path: str | Path, model: torch.nn.Module, *, config: Optional[ModelConfig] = None, base: bool = False) -> Path:
    """Weights only, into a model of the same architecture under any layout. Collective.

    Args:
        path: a run folder (its newest step is taken) or a step folder.
        model: with or without its DDP wrapper; an optimizer over it must `reload_model_params` afterwards.
        config: architecture of `model`, compared with the checkpoint's before anything is loaded.
        base: of a model with adapters, the weights under them; False loads the adapters.

    Returns:
        The step folder that was read.

    Raises:
        ValueError: no checkpoint there, or another architecture.
        atomic.DamagedCheckpoint: a file is missing or differs from its checksum.
    """
    folder = find(path)
    _verify(folder)
    if config is not None:
        check_architecture(folder, config)
    _load_weights(folder, model, base)
    return folder


def load_full_weights(tensors: Mapping[str, torch.Tensor], model: torch.nn.Module, *, source: str, base: bool = False) -> None:
    """Full tensors by native name into a model under any layout; each rank takes its part. Collective.

    Args:
        tensors: the same on every rank.
        model: with or without its DDP wrapper.
        source: what to call the tensors in messages.
        base: as load_weights.

    Raises:
        ValueError: names or shapes that are not the model's.
    """
    _copy_weights(WholeTensors(tensors, source), model, source, base)


def load_rng(folder: str | Path, layout: Mapping[str, int]) -> dict[str, torch.Tensor]:
    """This rank's random states; empty when the step was saved under another layout, where they mean nothing."""
    folder = Path(folder)
    if load_state(folder).layout != dict(layout):
        return {}
    reader, prefix = shards.Reader(folder), f"{rank()}/"
    # torch's generators want memory of their own, not a part of a mapped file
    return {key.removeprefix(prefix): reader.tensor(key).clone() for key in reader.keys() if key.startswith(prefix)}


def _load_weights(folder: Path, model: torch.nn.Module, base: bool = False) -> None:
    _copy_weights(shards.Reader(folder / "weights"), model, str(folder), base)


def _copy_weights(reader: shards.Reader, model: torch.nn.Module, source: str, base: bool) -> None:
    module = unwrap(model)
    loaded = shards.read(reader, _sharded_weights(module, base))
    targets: dict[str, torch.Tensor] = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    with torch.no_grad():
        for name, tensor in loaded.items():
            targets[name].copy_(tensor)
    left = set.intersection(*gather(reader.unread()))
    if left:
        names = ", ".join(sorted(left)[:5])
        raise ValueError(f"{source} holds weights that this model does not have: {names}; use the recipe it was trained with")


def unwrap(model: torch.nn.Module) -> torch.nn.Module:
    """The model inside megatron.core's DDP wrapper, or the model itself."""
    from megatron.core.distributed import DistributedDataParallel

    return model.module if isinstance(model, DistributedDataParallel) else model


def _sharded_weights(model: torch.nn.Module, base: bool = False) -> dict[str, Any]:
    module: Any = unwrap(model)
    if has_adapters(module) and not base:
        return sharded_adapters(module)
    sharded = module.sharded_state_dict(metadata=megatron_compat.checkpoint_metadata())
    # core's linear layers add an empty object for TransformerEngine's sake
    return {name: entry for name, entry in sharded.items() if not name.endswith("_extra_state") and not is_adapter(name)}


def _verify(folder: Path, on_part: Callable[[], None] = atomic.nothing) -> None:
    """Every file is checked by one rank; all ranks hear of a damaged one."""
    names = sorted(atomic.recorded(folder))
    problems = atomic.verify(folder, names[rank() :: world()], on_part)
    if found := [line for part in gather(problems) for line in part]:
        raise atomic.damaged(folder, found)
