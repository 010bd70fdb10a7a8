"""The load of a rank from its trace: FLOPs, allocated bytes and collectives of the traced packs, for all packs of the step."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from mindspeed_vita.config import Recipe
from mindspeed_vita.planner.load import Kernels, Load, Transfer
from mindspeed_vita.planner.trace.result import Trace

_LAYER_PRODUCTS = {"forward": 4, "recompute": 4, "backward": 8}
"""Matrix products of a layer: queries, keys and values at once; output; gate and up at once; down. Twice as many backward."""
_PASSES = 2
"""What an operator writes is read once by the next one: kernels of a device are fused as far as that."""
_OUTSIDE = ("optimizer", "gradients", "weights", "inputs")
"""Parts whose memory the other terms count."""
_ONCE = ("gradients", "optimizer")
"""Parts whose collectives belong to the step, not to a pack."""
_REPLICAS = ("dp", "dp_cp")


def traced_load(recipe: Recipe, world: int, trace: Trace) -> Load:
    """A whole step of the traced rank.

    Args:
        recipe: of the trace.
        world: number of ranks.
        trace: of the rank.
    """
    scale = trace.packs / trace.micro_batches
    work = _work(trace)
    total = {key: sum(phases.values()) * scale for key, phases in work.items()}
    layout = recipe.parallel
    layers = recipe.model.language.num_layers / layout.pp * trace.packs
    tower_layers = recipe.model.vision.num_layers * trace.packs
    parts = {name: recipe.parallel.cp // layout.ulysses if name == "attention" else 1 for name in work}

    def kernels(name: str, repeats: float, products: Mapping[str, int]) -> Kernels:
        calls = sum(products[phase] for phase, flops in work[name].items() if flops) * repeats * parts[name]
        return Kernels(total[name], calls if total[name] else 0.0)

    once = dict.fromkeys(_LAYER_PRODUCTS, 1)
    transfers: dict[str, Any] = _transfers(recipe, world, trace)
    idle = (layout.pp - 1) / (trace.packs + layout.pp - 1)
    return Load(
        matrix=kernels("matrix", layers, _LAYER_PRODUCTS),
        attention=kernels("attention", layers, once),
        tower=kernels("tower", tower_layers, _LAYER_PRODUCTS),
        head=kernels("head", trace.packs, once),
        memory=_allocated(trace) * _PASSES * scale,
        idle=idle,
        optimizer=_optimizer_bytes(trace),
        model_flops=sum(_model_flops(phases, attention=name == "attention") for name, phases in work.items()) * scale,
        **transfers,
    )


def _work(trace: Trace) -> dict[str, dict[str, float]]:
    """FLOPs of the traced packs by kind and phase."""
    found: dict[str, dict[str, float]] = {name: {} for name in ("matrix", "attention", "tower", "head")}
    for (place, attention), flops in trace.work.items():
        name = place.part if place.part in ("tower", "head") else "attention" if attention else "matrix"
        found[name][place.phase] = found[name].get(place.phase, 0.0) + flops
    return found


def _model_flops(phases: Mapping[str, float], *, attention: bool) -> float:
    """Without recomputation. Attention's backward pass computes scores again: of its five products, four are the model's."""
    backward = phases.get("backward", 0.0)
    return phases.get("forward", 0.0) + (backward * 4 / 5 if attention else backward)


def _allocated(trace: Trace) -> float:
    """Bytes that the traced packs allocate, without what belongs to the step as a whole."""
    inside = np.array([place.part not in _OUTSIDE and place.phase in _LAYER_PRODUCTS for place in trace.places], dtype=bool)
    changes, owners = trace.changes[trace.start :], trace.owners[trace.start :]
    return float(changes[(changes > 0) & inside[owners]].sum())


def _optimizer_bytes(trace: Trace) -> float:
    """The state is read and written, gradients are read, and weights are written."""
    held = np.bincount(trace.owners[: trace.start], weights=trace.changes[: trace.start], minlength=len(trace.places))
    sizes: dict[str, float] = {}
    for place, size in zip(trace.places, held):
        sizes[place.part] = sizes.get(place.part, 0.0) + float(size)
    return 2 * sizes.get("optimizer", 0.0) + sizes.get("gradients", 0.0) + sizes.get("weights", 0.0)


def _transfers(recipe: Recipe, world: int, trace: Trace) -> dict[str, tuple[Transfer, ...]]:
    """Each pack has the same collectives. Those of gradients and of the optimizer come once a step."""
    found: dict[str, list[Transfer]] = {}
    for sent in trace.sent:
        if sent.name == "recv" or sent.group_size == 1:  # what arrives is the other side's send
            continue
        times = 1.0 if sent.part in _ONCE else trace.packs / trace.micro_batches
        reach = _reach(recipe, world, sent.group, sent.group_size)
        transfer = Transfer(name=sent.name, ranks=sent.group_size, reach=reach, calls=sent.calls * times, bytes=sent.bytes * times)
        found.setdefault(_row(sent.name, sent.group, sent.part), []).append(transfer)
    return {row: tuple(transfers) for row, transfers in found.items()}


def _row(name: str, group: str, part: str) -> str:
    if part in _ONCE or group in _REPLICAS:
        return "replicas"
    if group == "tp":
        return "tensor"
    if group == "pp":
        return "pipeline"
    return "ring" if name == "send" else "exchange"


def _reach(recipe: Recipe, world: int, group: str, size: int) -> int:
    """Ranks are numbered over tp first, then cp, dp and pp, as in megatron. Ulysses takes neighbours of cp."""
    layout = recipe.parallel
    strides = {
        "tp": 1,
        "tp_cp": 1,
        "ulysses": layout.tp,
        "cp": layout.tp,
        "ring": layout.tp * layout.ulysses,
        "node": layout.tp * layout.ulysses,
        "border": layout.tp * (layout.cp // size),
        "dp": layout.tp * layout.cp,
        "dp_cp": layout.tp,
        "pp": world // layout.pp,
    }
    return min(world, strides.get(group, math.ceil(world / size)) * (size - 1) + 1)
