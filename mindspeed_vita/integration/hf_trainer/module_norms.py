"""The gradient norm of each module while transformers' Trainer trains, from the part of the gradients that each rank has."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Optional

import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor

from mindspeed_vita.engine.module_norms import squares_by_module
from mindspeed_vita.integration.hf_trainer.adapters import plain_name
from mindspeed_vita.integration.hf_trainer.packed_model import module_of
from mindspeed_vita.integration.hf_trainer.settings import FSDP2


@torch.no_grad()
def module_norms(model: Any, sharing: str, device: torch.device) -> torch.Tensor:
    """The norm of each of MODULES, float32[3] on the device. Collective, and the same on every rank.

    Each rank reads its part of the gradients once. Three numbers travel between the ranks, and none where each holds all gradients.

    Args:
        model: the exported model, whose gradients are summed over the ranks and not clipped yet.
        sharing: how the ranks share gradients; see settings.sharing_of.
        device: of the collective. Gradients may be in host memory.
    """
    parts = ((module_of(plain_name(name)), part) for name, part in _parts(model, sharing))
    squares = squares_by_module(parts, device)
    if sharing.startswith(("zero1", "zero2", "zero3", FSDP2)):
        dist.all_reduce(squares)
    return squares.sqrt()


def _parts(model: Any, sharing: str) -> Iterator[tuple[str, torch.Tensor]]:
    part_of = _zero3 if sharing.startswith("zero3") else _zero_1_2 if sharing.startswith(("zero1", "zero2")) else _own
    for name, parameter in model.named_parameters():
        part = part_of(parameter) if parameter.requires_grad else None
        if part is not None:
            yield name, part


def _own(parameter: torch.nn.Parameter) -> Optional[torch.Tensor]:
    """The whole gradient; with FSDP2 this rank's part of it."""
    gradient = parameter.grad
    return gradient.to_local() if isinstance(gradient, DTensor) else gradient


def _zero3(parameter: torch.nn.Parameter) -> torch.Tensor:
    """This rank's part, by DeepSpeed's accessor. Padding at its end is 0."""
    from deepspeed.utils import safe_get_local_grad

    return safe_get_local_grad(parameter)


def _zero_1_2(parameter: Any) -> Optional[torch.Tensor]:
    """This rank's part; None where it has none.

    DeepSpeed's accessor, safe_get_full_grad, sends each gradient whole to every rank. This is what it reads before that.
    """
    mapping = parameter._hp_mapping
    if mapping is None:
        return None
    found = mapping.get_lp_grad_fragment(parameter._index_in_param_group)
    if found.numel() != parameter.numel():
        return found
    place = mapping.lp_fragment_address  # under ZeRO-1 in bf16 every rank has the whole gradient, and counts its part of it
    return found.flatten().narrow(0, place.start, place.numel)
