"""The gradient norm of each module, from the part of the gradients that each rank has. The keys are the same in all engines."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Optional

import torch
import torch.distributed as dist

from mindspeed_vita.config import MODULES
from mindspeed_vita.platform import megatron_compat


def squares_by_module(gradients: Iterable[tuple[str, torch.Tensor]], device: torch.device) -> torch.Tensor:
    """The sum of squares of each of MODULES, in their order: float32[3] on a device.

    Args:
        gradients: name of the module, and a gradient or a part of one. It is read once; no copy of it is made.
        device: of the result.
    """
    squares: dict[str, list[torch.Tensor]] = {module: [] for module in MODULES}
    for module, gradient in gradients:
        squares[module].append(torch.linalg.vector_norm(gradient, dtype=torch.float32).square().to(device))
    return torch.stack([torch.stack(found).sum() if found else torch.zeros((), device=device) for found in squares.values()])


def by_key(norms: Optional[torch.Tensor]) -> dict[str, float]:
    """The norm of each module that has gradients, by its key in metrics.jsonl. Waits for the device.

    Args:
        norms: of MODULES, in their order; None: they were not measured.
    """
    found = [] if norms is None else norms.tolist()
    return {f"grad_norm/{module}": norm for module, norm in zip(MODULES, found) if norm}


@torch.no_grad()
def megatron_norms(optimizer: Any, chunks: Iterable[torch.nn.Module], *, copies: int = 1) -> torch.Tensor:
    """The norm of each of MODULES over all ranks, float32[3] on the device. Collective, and the same on every rank.

    What several ranks hold counts once, as in the optimizer's own norm.

    Args:
        optimizer: of megatron.core, whose gradients are ready (prepare_grads) and not clipped yet.
        chunks: the parts of this rank's model, without wrappers.
        copies: how many ranks hold each part of a distributed optimizer.
    """
    held = list(chunks)
    named = [(name.split(".", 1)[0], parameter) for chunk in held for name, parameter in chunk.named_parameters()]
    optimizers = getattr(optimizer, "chained_optimizers", (optimizer,))
    gradients = (found for one in optimizers for found in _counted(one, named))
    squares = squares_by_module(gradients, next(held[0].parameters()).device)
    dist.all_reduce(squares, group=optimizer.get_grad_stats_parallel_group())
    return (squares / copies).sqrt()


def _counted(optimizer: Any, named: Iterable[tuple[str, torch.nn.Parameter]]) -> Iterator[tuple[str, torch.Tensor]]:
    """The gradients that this rank counts in the norm."""
    held = megatron_compat.gradients_in_norm(optimizer)  # the list keeps them, so that an id means one gradient
    counted = {id(gradient) for gradient in held}
    for module, parameter in named:
        main = _main_parameter(optimizer, parameter)
        gradient = None if main is None else main.grad
        if gradient is not None and id(gradient) in counted:
            yield module, gradient


def _main_parameter(optimizer: Any, parameter: torch.nn.Parameter) -> Optional[torch.Tensor]:
    """What the optimizer updates for a parameter of the model; None: another rank does."""
    places = getattr(optimizer, "model_param_group_index_map", None)
    if places is None:  # not shared out over data parallelism
        return getattr(parameter, "main_param", parameter)
    place = places.get(parameter)
    return None if place is None else optimizer.optimizer.param_groups[place[0]]["params"][place[1]]
