"""A model without data (meta device) whose forward pass fills one layer at a time, tells its output, and drops its weights again.

The pass itself is the model's own. Hooks before and after each layer do the rest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Optional

import numpy as np
import torch
from torch import nn

from mindspeed_vita.checks.logits.lockstep import Tell
from mindspeed_vita.files.shard_stream import Report
from mindspeed_vita.files.tensors import Tensors

_HEAD_ROWS = 8192
"""Rows of the output layer that are in memory at a time."""


@dataclass(frozen=True, kw_only=True)
class Parts:
    """What a model calls its modules."""

    tower_layers: str
    tower_norm: str
    """The norm behind the tower's last layer, which only some towers have."""
    projector: str
    table: str
    """The embedding table's module."""
    layers: str
    norm: str
    """The norm behind the decoder's last layer."""
    head: str
    """The output layer."""


@dataclass(frozen=True, kw_only=True)
class Weights:
    """A checkpoint's tensors in float32, under the names of a model's parameters."""

    tensors: Tensors
    names: Mapping[str, str]
    """Parameter -> tensor."""
    types: Mapping[str, torch.dtype]
    """Type that a tensor has in the second checkpoint; the first one's are cast to it before they become float32."""
    report: Report
    """Told of the bytes that were taken."""

    def take(self, parameter: str, rows: Optional[torch.Tensor] = None) -> torch.Tensor:
        """A tensor, or some of its rows."""
        tensor = self.stored(parameter)
        return self.cast(parameter, tensor if rows is None else tensor[rows])

    def stored(self, parameter: str) -> torch.Tensor:
        """The tensor as it is stored."""
        name = self.names[parameter]
        self.report(self.tensors.specs()[name].nbytes)
        return self.tensors[name]

    def cast(self, parameter: str, tensor: torch.Tensor) -> torch.Tensor:
        """A part of a stored tensor in the type that the pass has."""
        return tensor.to(self.types[self.names[parameter]]).to(torch.float32)


class StreamedModel:
    """Hooks on a model.

    Args:
        module: on the meta device. Its buffers have data.
        parts: what it calls its modules.
        weights: of its parameters. A tied output layer has none of its own.
        tell: told the points, in the order of the pass.
    """

    def __init__(self, module: nn.Module, parts: Parts, weights: Weights, tell: Tell) -> None:
        lacking = [name for name, buffer in module.named_buffers() if buffer.is_meta]
        assert not lacking, f"buffers without data: {lacking[:4]}"
        self.module, self._parts, self._weights, self._tell = module, parts, weights, tell
        self._parameters = [name for name, _ in module.named_parameters()]
        layered = [*self._layers(parts.tower_layers, "vision"), *self._layers(parts.layers, "language.decoder")]
        for point, name in (*layered, ("projector", parts.projector)):
            self._stream(name)
            self._watch(name, point)
        for point, name in (("vision.final_layernorm", parts.tower_norm), ("language.decoder.final_layernorm", parts.norm)):
            self._watch(name, point)
        self._fill_embeddings_only_for_the_probe()
        streamed = tuple(f"{name}." for name in (*(name for _, name in layered), parts.projector, parts.table, parts.head))
        self._fill(name for name in self._parameters if not name.startswith(streamed))

    def logits(self, hidden_TH: torch.Tensor, head: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> None:
        """Tells the logits, some rows of the output layer after the other.

        Args:
            hidden_TH: final hidden states.
            head: hidden states and rows of the output layer to logits.
        """
        own = f"{self._parts.head}.weight"
        name = own if own in self._weights.names else f"{self._parts.table}.weight"
        stored = self._weights.stored(name)
        for first in range(0, len(stored), _HEAD_ROWS):
            self._tell("logits", head(hidden_TH, self._weights.cast(name, stored[first : first + _HEAD_ROWS])))

    def _layers(self, name: str, point: str) -> list[tuple[str, str]]:
        """Points and names of a list of layers. What goes into the first one is a point, too."""
        found = self._find(name)
        if found is None:  # a tower of another build: it stays in memory
            return []
        assert isinstance(found, nn.ModuleList)
        if len(found):
            self._watch_input(found[0], f"{point}.embeddings")
        return [(f"{point}.layers.{number}", f"{name}.{number}") for number in range(len(found))]

    def _find(self, name: str) -> Optional[nn.Module]:
        found: Any = self.module
        for part in name.split("."):
            found = getattr(found, part, None)
        return found if not isinstance(found, nn.Identity) else None

    def _told(self, point: str, values: torch.Tensor) -> torch.Tensor:
        """What the pass goes on with."""
        reply = self._tell(point, values.reshape(-1, values.shape[-1]))
        return values if reply is None else reply.view(values.shape)

    def _watch_input(self, module: nn.Module, point: str) -> None:
        def told(module: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> tuple[Any, Any]:
            if given:
                return (self._told(point, given[0]), *given[1:]), named
            return given, {**named, "hidden_states": self._told(point, named["hidden_states"])}

        module.register_forward_pre_hook(told, with_kwargs=True)

    def _watch(self, name: str, point: str) -> None:
        def told(module: nn.Module, given: Any, out: Any) -> Any:
            return (self._told(point, out[0]), *out[1:]) if isinstance(out, tuple) else self._told(point, out)

        module = self._find(name)
        if module is not None:
            module.register_forward_hook(told)

    def _stream(self, name: str) -> None:
        """Weights come before a module's pass and go behind it."""
        held, module = [each for each in self._parameters if each.startswith(f"{name}.")], self.module.get_submodule(name)
        module.register_forward_pre_hook(lambda module, given: self._fill(held))
        module.register_forward_hook(lambda module, given, out: self._drop(held))

    def _fill_embeddings_only_for_the_probe(self) -> None:
        name = f"{self._parts.table}.weight"
        module = self.module.get_submodule(self._parts.table)

        def fill(module: nn.Module, given: tuple[torch.Tensor, ...]) -> None:
            tokens = given[0].unique()
            # pages of zeros that are never touched take no memory
            table = torch.from_numpy(np.zeros(module.get_parameter("weight").shape, dtype=np.float32))
            table[tokens] = self._weights.take(name, tokens)
            self._put(name, table)

        module.register_forward_pre_hook(fill)
        module.register_forward_hook(lambda module, given, out: self._drop([name]))

    def _fill(self, names: Iterable[str]) -> None:
        for name in names:
            self._put(name, self._weights.take(name))

    def _drop(self, names: Iterable[str]) -> None:
        for name in names:
            self._put(name, self.module.get_parameter(name).to("meta"))

    def _put(self, name: str, tensor: torch.Tensor) -> None:
        owner, _, leaf = name.rpartition(".")
        self.module.get_submodule(owner)._parameters[leaf] = nn.Parameter(tensor, requires_grad=False)
