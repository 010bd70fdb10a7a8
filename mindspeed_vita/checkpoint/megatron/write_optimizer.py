"""Plans the optimizer's part of a MindSpeed-LLM checkpoint, so that MindSpeed-LLM continues a run: what each rank's files hold.

bf16 runs have the distributed optimizer and a file of flat buffers for each rank. fp32 runs keep moments in the rank's main file.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from mindspeed_vita.checkpoint.megatron.flat_buffers import Buckets, alone_in_bucket, flat_places, parameter_order, stored_size
from mindspeed_vita.checkpoint.megatron.layout import part
from mindspeed_vita.checkpoint.megatron.optimizer_files import GroupKey, group_keys
from mindspeed_vita.checkpoint.training import MOMENTS, Training, kinds, schedule_of, trainable
from mindspeed_vita.config import Recipe
from mindspeed_vita.files.tensors import Group, Spec
from mindspeed_vita.parallel.parameter_groups import group_settings

_PADDING = "padding"


@dataclass(frozen=True)
class RankOptimizer:
    """What one rank's main file holds besides weights, and what its file of flat buffers holds."""

    content: Callable[[Mapping[str, torch.Tensor]], dict[str, Any]]
    """Entries of the main file, around the tensors of `groups`."""
    groups: tuple[Group, ...]
    """Tensors of the main file, in order."""
    flat: tuple[Group, ...]
    """Parts of the flat buffers, in order; empty in fp32."""
    flat_specs: Mapping[str, Spec]
    """The flat buffers, which the parts fill one after the other."""
    has_flat_file: bool


def order_of(held: Mapping[str, str]) -> dict[str, str]:
    """A rank's weights in the order of the model, by their names on the rank.

    Raises:
        ValueError: a module of a plugin, whose order is not known.
    """
    return {name: held[name] for name in parameter_order(held)}


def plan_optimizer(training: Training, recipe: Recipe, held: Mapping[str, str], rank: int, groups: Sequence[GroupKey]) -> RankOptimizer:
    """One rank's share.

    Args:
        training: what the run continues from.
        recipe: with the target's tp and pp.
        held: native names of the rank's weights, by the names with the stage's own layer numbers, in the order of the model.
        rank: tensor-parallel rank.
        groups: keys of all parameter groups, in order.

    Raises:
        ValueError: a table shared by two stages does not fit MindSpeed-LLM's buckets.
    """
    tp = recipe.parallel.tp
    names = trainable(held, recipe)
    specs = training.optimizer.specs()

    def one(kind: str, name: str) -> Group:
        native, key = held[name], f"{kind}.{held[name]}"

        def make() -> tuple[torch.Tensor, ...]:
            return (part(native, training.optimizer[key], rank, tp),)

        return Group({f"{kind}.{name}": Spec.of(part(native, specs[key].meta(), rank, tp))}, make)

    shapes = {name: next(iter(one(MOMENTS[0], name).specs.values())).shape for name in names}
    keys = group_keys(shapes, recipe)
    members = [[name for name in names if keys[name] == key] for key in groups]
    headers = [_group(key, recipe, training.state.step) for key in groups]
    common = _common(training, recipe)
    if recipe.train.precision == "bf16":
        flat, flat_specs = _flat(one, shapes, recipe)
        return RankOptimizer(
            content=lambda tensors: {**common, "optimizer": {"optimizer": {"param_groups": headers}}},
            groups=(),
            flat=flat,
            flat_specs=flat_specs,
            has_flat_file=True,
        )
    numbers = {name: number for number, name in enumerate(name for part in members for name in part)}

    def content(tensors: Mapping[str, torch.Tensor]) -> dict[str, Any]:
        state = {number: {kind: tensors[f"{kind}.{name}"] for kind in MOMENTS} for name, number in numbers.items()}
        listed = [{**header, "params": [numbers[name] for name in part]} for header, part in zip(headers, members)]
        return {**common, "optimizer": {"state": state, "param_groups": listed}}

    return RankOptimizer(
        content=content, groups=tuple(one(kind, name) for name in numbers for kind in MOMENTS), flat=(), flat_specs={}, has_flat_file=False
    )


def flat_content(tensors: Mapping[str, torch.Tensor]) -> dict[Any, Any]:
    """The object in distrib_optim.pt.

    Args:
        tensors: the flat buffers by kind; none where a rank trains nothing.
    """
    if not tensors:
        return {"buckets_coalesced": True}
    size = next(iter(tensors.values())).numel()
    return {"buckets_coalesced": True, 0: {(torch.bfloat16, torch.float32): {**tensors, "numel_unpadded": size}}}


def _flat(
    one: Callable[[str, str], Group], shapes: Mapping[str, tuple[int, ...]], recipe: Recipe
) -> tuple[tuple[Group, ...], dict[str, Spec]]:
    sizes = {name: torch.Size(shape).numel() for name, shape in shapes.items()}
    alone = alone_in_bucket(sizes, tied=recipe.model.language.tie_embeddings, pp=recipe.parallel.pp)
    places = flat_places(sizes, Buckets(), alone)
    total = stored_size(sizes, places)
    parts: list[Group] = []
    for kind in kinds(recipe):
        end = 0
        for name, start in places.items():
            if start > end:
                parts.append(_zeros(f"{_PADDING}.{len(parts)}", start - end))
            parts.append(one(kind, name))
            end = start + sizes[name]
    specs = {kind: Spec(torch.float32, (total,)) for kind in kinds(recipe)} if total else {}
    return tuple(parts), specs


def _zeros(name: str, size: int) -> Group:
    return Group({name: Spec(torch.float32, (size,))}, lambda: (torch.zeros(size),))


def _group(key: GroupKey, recipe: Recipe, step: int) -> dict[str, Any]:
    """A parameter group of MindSpeed's AdamW, without its parameters."""
    train, (multiplier, decay) = recipe.train, key
    return {
        **group_settings(train, multiplier, decay),
        "lr": train.lr * multiplier,
        "betas": (train.beta1, train.beta2),
        "eps": train.eps,
        "weight_decay": train.weight_decay * decay,
        "amsgrad": False,
        "maximize": False,
        "step": step,
    }


def _common(training: Training, recipe: Recipe) -> dict[str, Any]:
    """Entries that are the same on all ranks."""
    language, parallel, state = recipe.model.language, recipe.parallel, training.state
    arguments = argparse.Namespace(
        # what Megatron compares with the command line of the run that loads
        num_layers=language.num_layers,
        hidden_size=language.hidden_size,
        num_attention_heads=language.num_heads,
        tensor_model_parallel_size=parallel.tp,
        pipeline_model_parallel_size=parallel.pp,
        # how far the data is
        consumed_train_samples=state.packs,
        skipped_train_samples=0,
        consumed_valid_samples=0,
        # how the flat buffers are cut
        overlap_grad_reduce=False,
        data_parallel_size=1,
        context_parallel_size=1,
    )
    return {
        "args": arguments,
        "iteration": state.step,
        "opt_param_scheduler": dict(training.schedule or schedule_of(recipe, state.packs)),
        "rerun_state_machine": None,
        "num_floating_point_operations_so_far": training.operations,
    }
