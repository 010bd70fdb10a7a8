"""The model parts of one rank in an interleaved pipeline, as one module. Its parameter names begin with the number of the part."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from mindspeed_vita.platform.megatron_compat import virtual_stage


class ModelChunks(torch.nn.Module):
    """The chunks of a rank, in the order in which a micro-batch passes them; all bare, or all inside megatron.core's DDP."""

    def __init__(self, chunks: Sequence[Any]) -> None:
        super().__init__()
        for number, chunk in enumerate(chunks):
            self.add_module(str(number), chunk)

    def __iter__(self) -> Any:
        return iter(self.children())

    @property
    def config(self) -> Any:
        """megatron's configuration, which the chunks share."""
        return next(iter(self)).config

    @property
    def lora(self) -> Any:
        """The adapters that the chunks have, None without any; as VitaModel.lora."""
        return next(iter(self)).lora

    @property
    def module(self) -> ModelChunks:
        """The chunks without their DDP wrappers."""
        return ModelChunks([chunk.module for chunk in self])

    def zero_grad_buffer(self) -> None:
        """As that of megatron.core's DDP."""
        for chunk in self:
            chunk.zero_grad_buffer()

    def sharded_state_dict(self, prefix: str = "", sharded_offsets: Any = (), metadata: Any = None) -> dict[str, Any]:
        """megatron's description of the weights, by their names here. Its keys hold the layers' numbers in the whole model."""
        found: dict[str, Any] = {}
        for number, chunk in enumerate(self):
            with virtual_stage(number):
                part = chunk.sharded_state_dict(prefix, sharded_offsets, metadata)
            found.update({f"{number}.{name}": entry for name, entry in part.items()})
        return found


def chunks_of(model: Any) -> list[Any]:
    """The parts of a rank's model, or of a list of them; one without an interleaved pipeline."""
    return list(model) if isinstance(model, (ModelChunks, list)) else [model]


def for_schedule(model: Any, batches: Any) -> dict[str, Any]:
    """The model and its packs as megatron's schedules take them: in an interleaved pipeline a list of each.

    Args:
        model: of this rank.
        batches: the packs of a step; each chunk goes through all of them.
    """
    if not isinstance(model, ModelChunks):
        return {"model": model, "data_iterator": batches}
    held = list(batches)
    return {"model": list(model), "data_iterator": [iter(held) for _ in model]}
