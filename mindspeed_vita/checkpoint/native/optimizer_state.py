"""Adam's moments and the fp32 main parameters of a DistributedOptimizer, saved per parameter in the parameter's own shape.

The optimizer keeps flat ranges of a gradient buffer, laid out differently on each core line. Each rank writes the ranges that it holds as
blocks of whole tensors, under optimizer names that follow the weights. So they load under any tp, pp, cp, dp and on either line.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist

from mindspeed_vita.checkpoint.native.flat_ranges import Block, blocks
from mindspeed_vita.checkpoint.native.shards import Piece, Reader

_MOMENTS = ("exp_avg", "exp_avg_sq")
Hold = Callable[[torch.Tensor], torch.Tensor]
"""Gives what is written in the place of a tensor: the tensor itself, or a copy that stays as it is while training goes on."""


def pieces(
    optimizer: Any, model: torch.nn.Module, sharded_weights: dict[str, Any], group: dist.ProcessGroup, hold: Hold = torch.Tensor.detach
) -> Iterator[Piece]:
    """What this rank writes: its own ranges. Nothing but their lengths is sent. Collective over the group.

    The ranges are checked here, and the weights' shards where the weights are saved (`shards.owned_pieces`).

    Args:
        optimizer: megatron.core DistributedOptimizer.
        model: the model without its DDP wrapper.
        sharded_weights: its sharded state dict, local name -> ShardedTensor or factory.
        group: data x context parallel group.
        hold: called once for each tensor of the optimizer that this rank writes.

    Yields:
        fp32 pieces under the keys exp_avg.<weight key>, exp_avg_sq.<weight key> and, in bf16 training, param.<weight key>.
    """
    parameters = list(_trainable(model))
    places = [_place(optimizer, parameter) for _, parameter in parameters]
    _check_whole(parameters, places, group)
    for (name, parameter), place in zip(parameters, places):
        weight = sharded_weights[name]
        if place is None or any(weight.replica_id[:-1]):  # another rank of tp or pp writes the same
            continue
        _, main, (start, end) = place
        state = optimizer.optimizer.state.get(main)
        own: list[Block] = list(blocks(weight, parameter.shape, start, end))
        for kind in _kinds(parameter):
            # no state before the first step: zeros
            values = main if kind == "param" else state[kind] if state else torch.zeros_like(main)
            held = hold(values.detach())
            assert held.dtype == torch.float32 and held.is_contiguous() and held.numel() == end - start, (name, kind, held.dtype)
            for block in own:
                piece = block.piece(held)
                yield replace(piece, key=f"{kind}.{piece.key}")


def load_exact_weights(model: torch.nn.Module, sharded_weights: dict[str, Any], reader: Reader) -> None:
    """Weights of a run that trained in bf16 and goes on in fp32: the optimizer's fp32 ones, and not those that were rounded for the model.

    Args:
        model: the model without its DDP wrapper, weights already loaded.
        sharded_weights: as for `pieces`.
        reader: the optimizer folder.
    """
    if not _has_main_weights(reader):
        return
    for name, parameter in _trainable(model):
        if parameter.dtype == torch.float32:
            own = blocks(sharded_weights[name], parameter.shape, 0, parameter.numel())
            with torch.no_grad():
                parameter.copy_(_read(reader, own, parameter.numel(), "param.").view(parameter.shape))


def load(
    optimizer: Any, model: torch.nn.Module, sharded_weights: dict[str, Any], reader: Reader, step: int, *, weights: Reader
) -> None:
    """Fill a fresh DistributedOptimizer. Each rank reads the ranges that it holds.

    Args:
        optimizer: as for `pieces`, before its first step.
        model: the model without its DDP wrapper, weights already loaded.
        sharded_weights: as for `pieces`.
        reader: the optimizer folder.
        step: Adam's step count.
        weights: the folder of weights; of a run that trained in fp32 and goes on in bf16, its weights are the optimizer's.

    Raises:
        ValueError: state for a trainable parameter is missing or has another shape.
    """
    main_weights = _has_main_weights(reader)
    for name, parameter in _trainable(model):
        place = _place(optimizer, parameter)
        if place is None:
            continue
        group, main, (start, end) = place
        state: dict[str, torch.Tensor] = {"step": _step_tensor(group, main, step)}
        own = list(blocks(sharded_weights[name], parameter.shape, start, end))
        for kind in _kinds(parameter):
            source, prefix = (weights, "") if kind == "param" and not main_weights else (reader, f"{kind}.")
            values = _read(source, own, end - start, prefix)
            if kind == "param":
                main.data.copy_(values)
            else:
                state[kind] = values.to(main.device)
        optimizer.optimizer.state[main] = state


def _kinds(parameter: torch.nn.Parameter) -> tuple[str, ...]:
    """What the optimizer holds of a parameter. One in fp32 is its own main parameter."""
    return _MOMENTS if parameter.dtype == torch.float32 else ("param", *_MOMENTS)


def _read(reader: Reader, own: Iterable[Block], length: int, prefix: str) -> torch.Tensor:
    """A flat range of a tensor whose key has a prefix before the weight's, fp32. What no block fills, such as zero heads, stays zero."""
    values = torch.zeros(length)
    for block in own:
        replace(block, key=f"{prefix}{block.key}").load(reader, values)
    return values


def _check_whole(parameters: list[tuple[str, torch.nn.Parameter]], places: list[Any], group: dist.ProcessGroup) -> None:
    """Fails where the ranges of the group's ranks do not make up each parameter. Collective."""
    if not parameters:
        return
    lengths = torch.tensor([0 if place is None else place[2][1] - place[2][0] for place in places], dtype=torch.int64)
    dist.all_reduce(lengths, group=group)
    for (name, parameter), length in zip(parameters, lengths.tolist()):
        assert length == parameter.numel(), f"the optimizer's ranges hold {length} of {parameter.numel()} elements of {name}"


def _trainable(model: torch.nn.Module) -> Iterator[tuple[str, torch.nn.Parameter]]:
    return ((name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad)


def _has_main_weights(reader: Reader) -> bool:
    """Whether the run trained in bf16."""
    return any(key.startswith("param.") for key in reader.keys())


def _place(optimizer: Any, parameter: torch.nn.Parameter) -> Any:
    """(parameter group, this rank's fp32 slice, its range in the flat parameter), or None where this rank holds no part."""
    where = optimizer.model_param_group_index_map.get(parameter)
    if where is None:
        return None
    group = optimizer.optimizer.param_groups[where[0]]
    span = optimizer._get_model_param_range_map(parameter)["param"]
    return group, group["params"][where[1]], (span.start, span.end)


def _step_tensor(group: dict[str, Any], main: torch.Tensor, step: int) -> torch.Tensor:
    on_device = bool(group.get("fused") or group.get("capturable"))
    return torch.tensor(float(step), dtype=torch.float32, device=main.device if on_device else "cpu")
