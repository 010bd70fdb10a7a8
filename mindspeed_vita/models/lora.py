"""Adapters of linear layers (LoRA): each adds scale * B A x to a layer's output, and is fp32 whatever the layer is.

A fused layer (queries, keys and values; gate and up) has an A and a B for each of its projections, as peft has on an export.
Shapes: T tokens of this context-parallel rank, R rank, I inputs and O outputs of a projection.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Optional

import torch
import torch.nn.functional as F
from megatron.core.tensor_parallel.mappings import gather_from_sequence_parallel_region, reduce_scatter_to_sequence_parallel_region
from megatron.core.tensor_parallel.random import get_cuda_rng_tracker
from torch import nn

from mindspeed_vita.config import LoraConfig, ModelConfig

CHILD = "adapter"
"""Name of the adapters below their layer, and so a part of every adapter's name and of no other's."""
_RANDOM = "vita-adapters"
"""Random state of dropout. Its seed differs on every rank: ranks hold other tokens, or other inputs."""
Cut = Literal["whole", "column", "row"]


@dataclass(frozen=True, kw_only=True)
class AdaptedLayer:
    """A linear layer of the model that can have adapters."""

    projections: tuple[str, ...]
    """Names of what is fused in it, in order."""
    widths: tuple[int, ...]
    """Outputs of each projection, on all ranks together."""
    inputs: int
    """On all ranks together."""
    cut: Cut
    """How tensor parallelism cuts the layer."""
    fuse: Callable[[Sequence[torch.Tensor]], torch.Tensor]
    """Outputs of the projections -> the layer's output."""


def is_adapter(name: str) -> bool:
    """Whether a parameter's name is that of an adapter."""
    return f".{CHILD}." in name


def child_name(target: str) -> str:
    """The name of a target's adapter below its layer: q_proj, and mlp_0 of mlp.0."""
    return target.replace(".", "_")


class Adapter(nn.Module):
    """The two matrices of one projection.

    Args:
        layer: that the projection is part of.
        width: outputs of the projection, on all ranks together.
        lora: rank, scale and dropout.
        name: in the whole model; the initial values depend on it.
        seed: of the initial values.
        tp_rank, tp_size: this rank among those that share the layer.
        summed: of a layer that is whole on every rank: each rank has the gradient of its own rows, which megatron sums over tp.
    """

    def __init__(
        self, layer: AdaptedLayer, width: int, lora: LoraConfig, *, name: str, seed: int, tp_rank: int, tp_size: int, summed: bool
    ) -> None:
        super().__init__()
        self.name, self.cut, self.scale, self.dropout = name, layer.cut if tp_size > 1 else "whole", lora.scale, lora.dropout
        a_RI, b_OR = initial(lora.rank, layer.inputs, name, seed), torch.zeros(width, lora.rank, device="cpu")
        if self.cut == "column":
            b_OR = b_OR.chunk(tp_size)[tp_rank]
        elif self.cut == "row":
            a_RI = a_RI.chunk(tp_size, dim=1)[tp_rank]
        self.lora_A, self.lora_B = nn.Parameter(a_RI.clone()), nn.Parameter(b_OR.clone())
        # the tag by which megatron sums gradients over tensor parallelism: of what each rank applies to its own tokens only
        self.lora_A.sequence_parallel = summed if self.cut == "whole" else self.cut == "column"  # type: ignore[attr-defined]
        self.lora_B.sequence_parallel = summed if self.cut == "whole" else self.cut == "row"  # type: ignore[attr-defined]
        for parameter, own, axis in ((self.lora_A, "row", 1), (self.lora_B, "column", 0)):
            if self.cut == own:  # each rank counts in the norm of the gradients
                parameter.tensor_model_parallel, parameter.partition_dim, parameter.partition_stride = True, axis, 1  # type: ignore[attr-defined]

    def axes(self) -> dict[str, int]:
        """Parameters that tensor parallelism cuts, and along which axis."""
        return {"column": {"lora_B": 0}, "row": {"lora_A": 1}}.get(self.cut, {})

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        """torch's hook of .to() and the like: the adapters go to another device, and stay fp32."""
        return super()._apply(lambda tensor: _kept(tensor, fn(tensor)), recurse)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """What the projection's output gets in addition, fp32.

        Args:
            x: the layer's input. With tensor parallelism it is this rank's tokens of a column-parallel layer, and this rank's inputs of
                a row-parallel one; so is the result's other axis.
        """
        x = x.float()
        if self.dropout and self.training:
            with get_cuda_rng_tracker().fork(_RANDOM):
                x = F.dropout(x, self.dropout)
        low = F.linear(x, self.lora_A)
        if self.cut == "column":
            low = gather_from_sequence_parallel_region(low, tensor_parallel_output_grad=True)
        elif self.cut == "row":
            low = reduce_scatter_to_sequence_parallel_region(low)
        return F.linear(low, self.lora_B) * self.scale


class LayerAdapters(nn.Module):
    """The adapters of one layer's projections; a projection may have none.

    Args:
        layer: the layer.
        adapters: by name of the projection.
        ranks: among which the outputs of a column-parallel layer are shared out.
    """

    def __init__(self, layer: AdaptedLayer, adapters: dict[str, Adapter], ranks: int) -> None:
        super().__init__()
        self.layer, self.ranks = layer, ranks if layer.cut == "column" else 1
        for name, adapter in adapters.items():
            self.add_module(child_name(name), adapter)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """What the layer's output gets in addition, fp32."""
        made: list[Optional[torch.Tensor]] = []
        for name in self.layer.projections:
            adapter = self._modules.get(child_name(name))
            made.append(None if adapter is None else adapter(x))
        like = next(part for part in made if part is not None)
        widths = (width // self.ranks for width in self.layer.widths)
        return self.layer.fuse([like.new_zeros(*like.shape[:-1], width) if part is None else part for part, width in zip(made, widths)])


def adapted_layer(config: ModelConfig, name: str) -> Optional[AdaptedLayer]:
    """What a linear layer's adapters are like; None for a module that can have none.

    Args:
        config: sizes.
        name: of the module, native: language.decoder.layers.0.mlp.linear_fc1.
    """
    part, end = name.partition(".")[0], name.rpartition(".")[2]
    if part == "language":
        return _decoder_layers(config).get(end)
    if part == "vision":
        return _tower_layers(config).get(end)
    return _projector_layers(config).get(end)


def _decoder_layers(config: ModelConfig) -> dict[str, AdaptedLayer]:
    sizes = config.language
    hidden, width, per_group = sizes.hidden_size, sizes.head_dim, sizes.num_heads // sizes.num_kv_heads
    queries, keys, wide = sizes.num_heads * width, sizes.num_kv_heads * width, sizes.ffn_hidden_size

    def by_group(parts: Sequence[torch.Tensor]) -> torch.Tensor:
        query, key, value = (part.unflatten(-1, (-1, count * width)) for part, count in zip(parts, (per_group, 1, 1)))
        return torch.cat([query, key, value], dim=-1).flatten(-2)

    def side_by_side(parts: Sequence[torch.Tensor]) -> torch.Tensor:
        return torch.cat(list(parts), dim=-1)

    return {
        "linear_qkv": AdaptedLayer(
            projections=("q_proj", "k_proj", "v_proj"), widths=(queries, keys, keys), inputs=hidden, cut="column", fuse=by_group
        ),
        "linear_proj": AdaptedLayer(projections=("o_proj",), widths=(hidden,), inputs=queries, cut="row", fuse=_only),
        "linear_fc1": AdaptedLayer(
            projections=("gate_proj", "up_proj"), widths=(wide, wide), inputs=hidden, cut="column", fuse=side_by_side
        ),
        "linear_fc2": AdaptedLayer(projections=("down_proj",), widths=(hidden,), inputs=wide, cut="row", fuse=_only),
    }


def _tower_layers(config: ModelConfig) -> dict[str, AdaptedLayer]:
    sizes = config.vision
    hidden, wide = sizes.hidden_size, sizes.ffn_hidden_size

    def head_major(parts: Sequence[torch.Tensor]) -> torch.Tensor:
        """An export orders the outputs (3, heads, width), the layer (heads, 3, width)."""
        return parts[0].unflatten(-1, (3, sizes.num_heads, -1)).transpose(-3, -2).flatten(-3)

    return {
        "linear_qkv": AdaptedLayer(projections=("qkv",), widths=(3 * hidden,), inputs=hidden, cut="whole", fuse=head_major),
        "linear_proj": AdaptedLayer(projections=("proj",), widths=(hidden,), inputs=hidden, cut="whole", fuse=_only),
        "linear_fc1": AdaptedLayer(projections=("fc1",), widths=(wide,), inputs=hidden, cut="whole", fuse=_only),
        "linear_fc2": AdaptedLayer(projections=("fc2",), widths=(hidden,), inputs=wide, cut="whole", fuse=_only),
    }


def _projector_layers(config: ModelConfig) -> dict[str, AdaptedLayer]:
    sizes, hidden = config.projector, config.language.hidden_size
    merged = config.vision.hidden_size * sizes.pixel_shuffle**2
    first = AdaptedLayer(projections=("mlp.0",), widths=(sizes.hidden_size,), inputs=merged, cut="whole", fuse=_only)
    second = AdaptedLayer(projections=("mlp.2",), widths=(hidden,), inputs=sizes.hidden_size, cut="whole", fuse=_only)
    return {"linear_fc1": first, "linear_fc2": second}


def add_adapters(model: nn.Module, lora: LoraConfig, config: ModelConfig, *, tp_rank: int, tp_size: int, rank: int, seed: int) -> None:
    """Freezes a VitaModel and gives its layers adapters, whose output is zero at first. The random state of dropout is set up.

    Args:
        model: of one rank; its layers are changed.
        lora: which layers, and how.
        config: architecture of the model.
        tp_rank, tp_size: this rank among those that share a layer.
        rank: of this process in the run.
        seed: of the initial values, which are the same under any layout.
    """
    model.requires_grad_(False)
    model.trainable, model.lora = frozenset(lora.parts), lora  # type: ignore[assignment]
    for name, linear in list(_layers(model, config)):
        layer = adapted_layer(config, name)
        wanted = lora.of(name.partition(".")[0])
        assert layer is not None
        adapters = {
            target: Adapter(
                layer,
                width,
                lora,
                name=f"{name}.{CHILD}.{child_name(target)}",
                seed=seed,
                tp_rank=tp_rank,
                tp_size=tp_size,
                summed=bool(getattr(linear.weight, "sequence_parallel", False)),
            )
            for target, width in zip(layer.projections, layer.widths)
            if target in wanted
        }
        if adapters:
            linear.add_module(CHILD, LayerAdapters(layer, adapters, tp_size))
            linear.register_forward_hook(_add_output)
    tracker = get_cuda_rng_tracker()
    if lora.dropout and _RANDOM not in tracker.get_states():
        tracker.add(_RANDOM, seed + 4_000_037 + rank)


def adapters_of(model: nn.Module) -> Iterator[tuple[str, Adapter]]:
    """The adapters of this rank, with their names in it."""
    return ((name, module) for name, module in model.named_modules() if isinstance(module, Adapter))


def has_adapters(model: nn.Module) -> bool:
    """Whether a model trains adapters, also where this pipeline stage holds none of them."""
    return getattr(model, "lora", None) is not None


def initial(rank: int, inputs: int, name: str, seed: int) -> torch.Tensor:
    """Initial A [R, I] of an adapter: uniform within 1 / sqrt(I), as peft draws it."""
    digest = hashlib.sha256(f"{seed} {name}".encode()).digest()
    generator = torch.Generator("cpu").manual_seed(int.from_bytes(digest[:7], "big"))
    bound = 1 / math.sqrt(inputs)
    return torch.empty(rank, inputs, device="cpu").uniform_(-bound, bound, generator=generator)


def _layers(model: Any, config: ModelConfig) -> Iterator[tuple[str, Any]]:
    """The linear layers that can have adapters, under their names in the whole model: each pipeline stage counts its layers from 0."""
    numbers = {}
    for index, layer in enumerate(model.language.decoder.layers):
        numbers[f"language.decoder.layers.{index}."] = f"language.decoder.layers.{layer.layer_number - 1}."
    for name, module in model.named_modules():
        if getattr(module, "weight", None) is None or module.weight.dim() != 2 or adapted_layer(config, name) is None:
            continue
        prefix = next((own for own in numbers if name.startswith(own)), "")
        yield numbers.get(prefix, "") + name.removeprefix(prefix), module


def _add_output(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> Any:
    """torch's hook after a layer: adds the adapters' output. megatron's layers give (output, bias)."""
    whole = output[0] if isinstance(output, tuple) else output
    added = (whole.float() + module.adapter(inputs[0])).to(whole.dtype)  # type: ignore[operator]
    return (added, *output[1:]) if isinstance(output, tuple) else added


def _only(parts: Sequence[torch.Tensor]) -> torch.Tensor:
    return parts[0]


def _kept(before: torch.Tensor, after: torch.Tensor) -> torch.Tensor:
    return after if after.dtype == before.dtype else after.to(before.dtype)
