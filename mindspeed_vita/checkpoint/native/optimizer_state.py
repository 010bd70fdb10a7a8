"""Adam's moments and the fp32 main parameters of a DistributedOptimizer, saved per parameter in the parameter's own shape.

The optimizer keeps flat slices of a gradient buffer, laid out differently on each core line. Here every parameter's state is put
together again, under optimizer names that follow the weights, so that it loads under any tp, pp, cp, dp and on either line.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Iterator

import torch
import torch.distributed as dist

from mindspeed_vita.checkpoint.native import shards

_MOMENTS = ("exp_avg", "exp_avg_sq")


def pieces(optimizer: Any, model: torch.nn.Module, sharded_weights: dict[str, Any], group: dist.ProcessGroup) -> Iterator[shards.Piece]:
    """What this rank writes: each parameter's state goes, whole, to one rank of the dp x cp group, in turn. Collective.

    Args:
        optimizer: megatron.core DistributedOptimizer.
        model: the model without its DDP wrapper.
        sharded_weights: its sharded state dict, local name -> ShardedTensor or factory.
        group: data x context parallel group.

    Yields:
        fp32 CPU pieces under the keys exp_avg.<weight key>, exp_avg_sq.<weight key> and, in bf16 training, param.<weight key>.
    """
    mine: dict[str, Any] = {}
    for index, (name, parameter) in enumerate(_trainable(model)):
        owner = index % group.size()
        kinds = _MOMENTS if parameter.dtype == torch.float32 else ("param", *_MOMENTS)
        for kind in kinds:
            flat = torch.zeros(parameter.numel(), dtype=torch.float32)
            local = _local(optimizer, parameter, kind)
            if local is not None:
                start, values = local
                flat[start : start + values.numel()] = values.detach().float().cpu()
            # every element is non-zero on one rank at most, so the sum is exact
            dist.reduce(flat, dst=dist.get_global_rank(group, owner), group=group)
            if group.rank() == owner:
                mine[f"{kind}.{name}"] = _like(sharded_weights[name], kind, flat.view(parameter.shape), owned=True)
    yield from shards.owned_pieces(mine)


def load_exact_weights(model: torch.nn.Module, sharded_weights: dict[str, Any], reader: shards.Reader) -> None:
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
            wanted = {name: _like(sharded_weights[name], "param", torch.empty(parameter.shape, device="meta"), owned=False)}
            with torch.no_grad():
                parameter.copy_(shards.read(reader, wanted)[name])


def load(
    optimizer: Any, model: torch.nn.Module, sharded_weights: dict[str, Any], reader: shards.Reader, step: int, *, weights: shards.Reader
) -> None:
    """Fill a fresh DistributedOptimizer, one parameter at a time.

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
        for kind in ("param", *_MOMENTS):
            key = f"{kind}.{name}"
            template = torch.empty(parameter.shape, dtype=torch.float32, device="meta")
            source, prefix = (weights, "") if kind == "param" and not main_weights else (reader, kind)
            wanted = {key: _like(sharded_weights[name], prefix, template, owned=False)}
            if kind == "param" and parameter.dtype == torch.float32:
                continue  # an fp32 parameter is its own main parameter
            values = shards.read(source, wanted)[key].reshape(-1)[start:end]
            if kind == "param":
                main.data.copy_(values)
            else:
                state[kind] = values.to(main.device, copy=True)
        optimizer.optimizer.state[main] = state


def _trainable(model: torch.nn.Module) -> Iterator[tuple[str, torch.nn.Parameter]]:
    return ((name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad)


def _has_main_weights(reader: shards.Reader) -> bool:
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


def _local(optimizer: Any, parameter: torch.nn.Parameter, kind: str) -> Any:
    place = _place(optimizer, parameter)
    if place is None:
        return None
    _, main, (start, _) = place
    if kind == "param":
        return start, main
    state = optimizer.optimizer.state.get(main)
    return (start, state[kind]) if state else None  # no state before the first step: zeros


def _like(weight: Any, kind: str, data: torch.Tensor, *, owned: bool) -> Any:
    """The weight's sharding, for a tensor of the optimizer; with an empty kind for the weight itself, in another type."""
    changes: dict[str, Any] = {"key": f"{kind}.{weight.key}" if kind else weight.key, "data": data}
    if hasattr(weight, "dtype"):  # a factory has none
        changes["dtype"] = data.dtype
    if owned:
        changes["replica_id"] = (*weight.replica_id[:-1], 0)
    return replace(weight, **changes)


def _step_tensor(group: dict[str, Any], main: torch.Tensor, step: int) -> torch.Tensor:
    on_device = bool(group.get("fused") or group.get("capturable"))
    return torch.tensor(float(step), dtype=torch.float32, device=main.device if on_device else "cpu")
