"""Reads the optimizer of a MindSpeed-LLM checkpoint (--ckpt-format torch): each rank's parts become whole native tensors.

Three layouts: flat buffers in distrib_optim.pt (--use-distributed-optimizer), and one tensor per parameter in the rank's main file,
with fp32 parameters next to it in bf16 training.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from mindspeed_vita.checkpoint.megatron.flat_buffers import SHARED, TABLE, Buckets, alone_in_bucket, flat_places, stored_size
from mindspeed_vita.checkpoint.megatron.layout import join
from mindspeed_vita.checkpoint.megatron.pickles import Arguments, read_pickle
from mindspeed_vita.checkpoint.megatron.rank_files import native_weights, num_layers, renumbered, run_state, stage_files
from mindspeed_vita.checkpoint.native.step_folder import TrainState
from mindspeed_vita.checkpoint.training import MAIN, MOMENTS, Training, kinds, trainable
from mindspeed_vita.config import Recipe
from mindspeed_vita.files.tensors import Made, Spec, same
from mindspeed_vita.parallel.parameter_groups import decays, learning_rate_multiplier

FLAT_FILE = "distrib_optim.pt"

GroupKey = tuple[float, float]
"""Multiplier of the learning rate, and of the weight decay."""
Parts = dict[str, dict[str, torch.Tensor]]
"""One rank's optimizer tensors, by kind and by native name."""


def group_keys(shapes: Mapping[str, tuple[int, ...]], recipe: Recipe) -> dict[str, GroupKey]:
    """The parameter group of each trainable weight, by native name. Groups stand in an optimizer in falling order of their keys."""
    layers = recipe.model.vision.num_layers
    return {
        name: (learning_rate_multiplier(name, recipe.train, layers), float(decays(name, torch.empty(shapes[name], device="meta"))))
        for name in trainable(shapes, recipe)
    }


def read_training(folder: Path, recipe: Recipe, shapes: Mapping[str, tuple[int, ...]]) -> Training:
    """The optimizer and what belongs to it, each tensor joined when it is asked for.

    Args:
        folder: a run's folder (its latest iteration is taken) or an iteration's.
        recipe: what the run was told.
        shapes: of the whole weights by native name.

    Raises:
        ValueError: the optimizer cannot be moved; the message says why.
    """
    state = run_state(folder)
    if state is None or "fingerprint" not in state:
        raise ValueError(f"--optimizer: {folder} was not saved by a run of this package, so its data is unknown; leave --optimizer out")
    groups = sorted(set(group_keys(shapes, recipe).values()), reverse=True)
    held: dict[str, list[torch.Tensor]] = {}
    contents, files, first_layer = [], [], 0
    stages = stage_files(folder)
    for stage, paths in enumerate(stages):
        parts, names = [], {}
        for path in paths:
            contents.append(read_pickle(path))
            files += [path, *([path.with_name(FLAT_FILE)] if path.with_name(FLAT_FILE).is_file() else [])]
            chunks = native_weights(path)
            if len(chunks) > 1:
                raise ValueError(
                    f"--optimizer: {folder} was saved with {len(chunks)} virtual stages, whose optimizer cannot be moved; continue it at "
                    "the same layout, or leave --optimizer out"
                )
            (names,) = chunks
            parts.append(_rank_parts(path, contents[-1], names, recipe, (stage, len(stages)), groups))
        for kind in kinds(recipe):
            for name in parts[0][kind]:
                held[f"{kind}.{renumbered(name, first_layer)}"] = [part[kind][name] for part in parts]
        first_layer += num_layers(names)
    _drop_copies(folder, held, recipe)
    whole = {key: Spec(torch.float32, shapes.get(key.partition(".")[2], ())) for key in held}
    tensors = Made(whole, lambda key: _joined(folder, key, held[key], whole[key].shape))
    return Training(
        optimizer=tensors,
        state=_train_state(folder, contents, state, tp=len(stages[0]), pp=len(stages)),
        schedule=_schedule(folder, contents[0]),
        operations=float(contents[0].get("num_floating_point_operations_so_far") or 0.0),
        files=tuple(files),
    )


def _drop_copies(folder: Path, held: dict[str, list[torch.Tensor]], recipe: Recipe) -> None:
    if not recipe.model.language.tie_embeddings:
        return
    for kind in kinds(recipe):
        copy = held.pop(f"{kind}.{SHARED}", None)
        if copy is not None and not all(map(same, copy, held[f"{kind}.{TABLE}"])):
            raise ValueError(f"--optimizer: {folder}: {kind} of the tied output layer differs from the embedding table's; copy it again")


def _joined(folder: Path, key: str, parts: Sequence[torch.Tensor], shape: tuple[int, ...]) -> torch.Tensor:
    """A whole tensor. A tower's may be whole on every rank, which its shape tells: moments may be the same on all without that."""
    if all(tuple(part.shape) == shape for part in parts):
        if not all(same(part, parts[0]) for part in parts[1:]):
            raise ValueError(f"--optimizer: {folder}: {key} should be the same on every tensor-parallel rank, and is not; copy it again")
        return parts[0]
    whole = join(key.partition(".")[2], parts)
    if tuple(whole.shape) != shape:
        raise ValueError(f"--optimizer: {folder}: {key} has the shape {tuple(whole.shape)}, expected {shape}; copy the files again")
    return whole


def _rank_parts(
    path: Path,
    content: dict[str, Any],
    weights: Mapping[str, torch.Tensor],
    recipe: Recipe,
    place: tuple[int, int],
    groups: Sequence[GroupKey],
) -> Parts:
    """One rank's parts.

    Args:
        path: the rank's main file.
        content: what is in it.
        weights: of the rank, in the order of the model.
        recipe: what the run was told.
        place: pipeline stage, and number of stages.
        groups: keys of all parameter groups, in order.
    """
    saved = content.get("optimizer")
    names = trainable(weights, recipe)
    if not isinstance(saved, dict):
        if names:
            raise ValueError(f"--optimizer: {path} holds no optimizer; leave --optimizer out")
        return {kind: {} for kind in kinds(recipe)}
    if path.with_name(FLAT_FILE).is_file():
        return _flat_parts(path, content, {name: weights[name] for name in names}, weights, recipe, place)
    return _plain_parts(path, saved, {name: weights[name] for name in names}, recipe, groups)


def _flat_parts(
    path: Path,
    content: dict[str, Any],
    trained: Mapping[str, torch.Tensor],
    weights: Mapping[str, torch.Tensor],
    recipe: Recipe,
    place: tuple[int, int],
) -> Parts:
    """Those of the distributed optimizer."""
    file = path.with_name(FLAT_FILE)
    flat = read_pickle(file)
    buffers = [value for key, value in flat.items() if key != "buckets_coalesced"]
    one = len(buffers) <= 1 and all(isinstance(each, dict) and len(each) == 1 for each in buffers)
    if flat.get("buckets_coalesced") is not True or not one:
        raise ValueError(f"--optimizer: {file} is not one buffer of coalesced buckets, as core 0.12.1 writes for a dense bf16 model; "
                         "leave --optimizer out")  # fmt: skip
    if not trained and not buffers:
        return {kind: {} for kind in kinds(recipe)}
    buckets = Buckets.of(content.get("args"), stage=place[0], num_parameters=sum(value.numel() for value in weights.values()))
    sizes = {name: value.numel() for name, value in trained.items()}
    alone = alone_in_bucket(trained, tied=recipe.model.language.tie_embeddings, pp=place[1])
    places = flat_places(sizes, buckets, alone)
    stored = next(iter(buffers[0].values())) if buffers else {}
    total = stored_size(sizes, places)
    parts: Parts = {}
    for kind in kinds(recipe):
        values = stored.get(kind) if isinstance(stored, dict) else None
        if not isinstance(values, torch.Tensor) or values.dtype != torch.float32 or tuple(values.shape) != (total,):
            found = f"{tuple(values.shape)} {values.dtype}" if isinstance(values, torch.Tensor) else "nothing"
            raise ValueError(
                f"--optimizer: {file} holds {found} for {kind}, expected ({total},) torch.float32 for the trainable parameters of "
                f"{list(recipe.train.modules)}; it is of other modules or another way to cut buckets"
            )
        parts[kind] = {name: values[at : at + sizes[name]].view(trained[name].shape) for name, at in places.items()}
    return parts


def _plain_parts(
    path: Path, saved: dict[str, Any], trained: Mapping[str, torch.Tensor], recipe: Recipe, groups: Sequence[GroupKey]
) -> Parts:
    """Those of an optimizer that every data-parallel rank holds whole."""
    main: Any = saved.get("fp32_from_fp16_params")
    inner = saved.get("optimizer") if main is not None else saved
    inner = inner if isinstance(inner, dict) else {}
    states, found = inner.get("state"), inner.get("param_groups")
    keys = group_keys({name: tuple(value.shape) for name, value in trained.items()}, recipe)
    members = [[name for name in trained if keys[name] == key] for key in groups]
    indices = [group.get("params") for group in found if isinstance(group, dict)] if isinstance(found, list) else []
    if not isinstance(states, dict) or [len(part or ()) for part in indices] != [len(part) for part in members]:
        raise ValueError(
            f"--optimizer: {path} holds groups of {[len(part or ()) for part in indices]} parameters, expected "
            f"{[len(part) for part in members]} of Adam; it is of another optimizer, other modules trained, or it was written by a version "
            "under which class token and position embeddings decayed; leave --optimizer out"
        )
    parts: Parts = {kind: {} for kind in kinds(recipe)}
    for number, names in enumerate(members):
        for place, name in enumerate(names):
            state = states.get((indices[number] or ())[place])
            values = {kind: state.get(kind) if isinstance(state, dict) else None for kind in MOMENTS}
            if MAIN in parts:
                mine = main[number] if isinstance(main, list) and len(main) == len(members) else None
                values[MAIN] = mine[place] if isinstance(mine, list) and len(mine) == len(names) else None
            for kind, value in values.items():
                if not isinstance(value, torch.Tensor) or value.dtype != torch.float32 or value.shape != trained[name].shape:
                    raise ValueError(f"--optimizer: {path} holds no fp32 {kind} like {name}, {tuple(trained[name].shape)}; it is not "
                                     "Adam's state, or is kept in another type")  # fmt: skip
                parts[kind][name] = value.detach()
    return parts


def _train_state(folder: Path, contents: Sequence[dict[str, Any]], state: Mapping[str, Any], *, tp: int, pp: int) -> TrainState:
    first = contents[0]
    arguments, iteration = first.get("args"), first.get("iteration")
    if not isinstance(arguments, Arguments) or not isinstance(iteration, int):
        raise ValueError(f"--optimizer: {folder} does not say its iteration or its arguments; leave --optimizer out")
    updates = {update for content in contents for update in _updates(content)}
    if updates != {iteration}:
        raise ValueError(
            f"--optimizer: {folder} is at iteration {iteration}, its optimizer made {sorted(updates)} updates; where updates were "
            "skipped the two cannot be moved together: leave --optimizer out"
        )
    if getattr(arguments, "skipped_train_samples", 0):
        raise ValueError(f"--optimizer: {folder} skipped {arguments.skipped_train_samples} samples (--iterations-to-skip), which no other "
                         "format can say; leave --optimizer out")  # fmt: skip
    sizes = {axis: getattr(arguments, name, None) or 1 for axis, name in (("cp", "context_parallel_size"), ("dp", "data_parallel_size"))}
    return TrainState(
        step=iteration,
        packs=int(getattr(arguments, "consumed_train_samples", 0)),
        fingerprint=str(state["fingerprint"]),
        failed_samples=tuple(state["failed_samples"]),
        layout={"tp": tp, "pp": pp, **sizes},
    )


def _updates(content: dict[str, Any]) -> set[int]:
    """How many updates each of a rank's parameter groups, or parameters, has had."""
    saved = content.get("optimizer")
    saved = saved.get("optimizer", saved) if isinstance(saved, dict) else {}
    groups, states = (saved.get(key) if isinstance(saved, dict) else None for key in ("param_groups", "state"))
    every = [*(groups if isinstance(groups, list) else ()), *(states.values() if isinstance(states, dict) else ())]
    steps = [held.get("step") for held in every if isinstance(held, dict)]
    return {int(step) for step in steps if isinstance(step, (int, float)) or (isinstance(step, torch.Tensor) and step.numel() == 1)}


def _schedule(folder: Path, content: dict[str, Any]) -> dict[str, Any]:
    schedule = content.get("opt_param_scheduler")
    if not isinstance(schedule, dict) or not all(isinstance(value, (int, float, str, type(None))) for value in schedule.values()):
        raise ValueError(f"--optimizer: {folder} holds no schedule of learning rates; leave --optimizer out")
    return schedule
