"""Names and shapes of adapters: natively, in peft's files, and which weight each one changes by how much.

The matrices are the same in both: only their names differ, so that converting them is exact.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Optional

import torch

from mindspeed_vita.checkpoint.mapping.families import family_rules
from mindspeed_vita.checkpoint.mapping.rules import Rule, check_shapes
from mindspeed_vita.config import LoraConfig, ModelConfig
from mindspeed_vita.files.tensors import Made, Spec, Tensors
from mindspeed_vita.models.lora import CHILD, adapted_layer, child_name, initial

PEFT_PREFIX = "base_model.model."
MATRICES = ("lora_A", "lora_B")


@dataclass(frozen=True, kw_only=True)
class AdaptedWeight:
    """A weight whose layer can have adapters."""

    rule: Rule
    """Its native tensor, and what that is in an export."""
    layer: str
    """Native name of the layer."""
    targets: tuple[str, ...]
    """Names of the projections, in the order of the rule's Hugging Face names."""
    widths: tuple[int, ...]
    """Outputs of each."""
    inputs: int

    def native_name(self, target: str, matrix: str) -> str:
        """Of a projection's matrix (lora_A or lora_B) in native checkpoints."""
        return f"{self.layer}.{CHILD}.{child_name(target)}.{matrix}"

    def peft_name(self, target: str, matrix: str) -> str:
        """Of the same matrix in peft's files."""
        module = self.rule.hf[self.targets.index(target)].removesuffix(".weight")
        return f"{PEFT_PREFIX}{module}.{matrix}.weight"


def adapted_weights(model: ModelConfig) -> Iterator[AdaptedWeight]:
    """The weights of all layers that can have adapters, in the order of the rules."""
    for rule in family_rules("long_vita", model):
        name = rule.native.removesuffix(".weight")
        layer = adapted_layer(model, name) if name != rule.native else None
        if layer is not None:
            sizes = {"widths": layer.widths, "inputs": layer.inputs}
            yield AdaptedWeight(rule=rule, layer=name, targets=layer.projections, **sizes)  # type: ignore[arg-type]


def names_and_shapes(model: ModelConfig, lora: LoraConfig) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Native name of every matrix -> its name in peft's files, and its shape."""
    found: dict[str, tuple[str, tuple[int, ...]]] = {}
    for weight in adapted_weights(model):
        for target, width in zip(weight.targets, weight.widths):
            if target in lora.of(weight.layer.partition(".")[0]):
                shapes = {"lora_A": (lora.rank, weight.inputs), "lora_B": (width, lora.rank)}
                for matrix in MATRICES:
                    found[weight.native_name(target, matrix)] = weight.peft_name(target, matrix), shapes[matrix]
    return found


def initial_matrices(model: ModelConfig, lora: LoraConfig, seed: int) -> dict[str, torch.Tensor]:
    """Matrices of fresh adapters by native name, as the built-in engine draws them: B is zero."""
    made = {}
    for name, (_, shape) in names_and_shapes(model, lora).items():
        owner, _, matrix = name.rpartition(".")
        made[name] = initial(shape[0], shape[1], owner, seed) if matrix == "lora_A" else torch.zeros(shape)
    return made


def check_fit(tensors: Tensors, model: ModelConfig, lora: LoraConfig, where: str) -> None:
    """Refuses adapters that are not of a model.

    Raises:
        ValueError: names or shapes that differ.
    """
    needed = {name: shape for name, (_, shape) in names_and_shapes(model, lora).items()}
    try:
        check_shapes(tensors.shapes(), needed, side="adapter's")
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def merged(weights: Tensors, adapters: Tensors, model: ModelConfig, lora: LoraConfig) -> Tensors:
    """The weights with the adapters added: W + scale * B A, summed in fp32 and rounded to the weight's type, each when it is asked for."""
    changed = {weight.rule.native: weight for weight in adapted_weights(model)}

    def make(name: str) -> torch.Tensor:
        weight = changed.get(name)
        delta = None if weight is None else _delta(weight, adapters, lora)
        return weights[name] if delta is None else (weights[name].float() + delta).to(weights.specs()[name].dtype)

    return Made(weights.specs(), make)


def _delta(weight: AdaptedWeight, adapters: Mapping[str, torch.Tensor], lora: LoraConfig) -> Optional[torch.Tensor]:
    parts = []
    wanted = lora.of(weight.layer.partition(".")[0])
    for target, width in zip(weight.targets, weight.widths):
        if target in wanted:
            a_RI, b_OR = (adapters[weight.native_name(target, matrix)].float() for matrix in MATRICES)
            parts.append(lora.scale * (b_OR @ a_RI))
        else:
            parts.append(torch.zeros(width, weight.inputs))
    return weight.rule.to_native(parts) if any(target in wanted for target in weight.targets) else None


def renamed(tensors: Tensors, names: Mapping[str, str], dtype: torch.dtype = torch.float32) -> Tensors:
    """The same tensors under other names.

    Args:
        tensors: by name.
        names: new name -> name in `tensors`.
        dtype: of the result.
    """
    specs = tensors.specs()
    return Made({new: Spec(dtype, specs[old].shape) for new, old in names.items()}, lambda new: tensors[names[new]].to(dtype))
