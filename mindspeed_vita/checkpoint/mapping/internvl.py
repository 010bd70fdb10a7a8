"""The rule tables of InternVL checkpoints: transformers' InternVLForConditionalGeneration, and InternVL's own repositories (internvl_chat).

InternVL's projector has biases, and between its linear layers the width of the decoder. Ours has no biases and may be narrower.
Zeros make up the difference: GELU(0) is 0, so the outputs are equal.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F

from mindspeed_vita.checkpoint.mapping.rules import Rule
from mindspeed_vita.checkpoint.mapping.vision_families import vision_rules
from mindspeed_vita.config.recipe import ModelConfig


@dataclass(frozen=True, kw_only=True)
class InternVLNames:
    """What a layout of InternVL calls the parts of the model."""

    language: str
    """In front of the decoder's names without the head's, such as embed_tokens.weight."""
    head: str
    """The output layer's table."""
    vision: str
    """In front of the tower's names."""
    tower: str
    """Family of the tower's names, see vision_families.py."""
    norm: str
    """The projector's LayerNorm, without .weight and .bias."""
    linears: tuple[str, str]
    """The projector's linear layers, without .weight and .bias."""


INTERNVL = {
    "internvl": InternVLNames(
        language="language_model.model.",
        head="language_model.lm_head.weight",
        vision="vision_tower.",
        tower="internvl_vision",
        norm="multi_modal_projector.layer_norm",
        linears=("multi_modal_projector.linear_1", "multi_modal_projector.linear_2"),
    ),
    "internvl_model": InternVLNames(
        language="model.language_model.",
        head="lm_head.weight",
        vision="model.vision_tower.",
        tower="internvl_vision",
        norm="model.multi_modal_projector.layer_norm",
        linears=("model.multi_modal_projector.linear_1", "model.multi_modal_projector.linear_2"),
    ),
    "internvl_chat": InternVLNames(
        language="language_model.model.",
        head="language_model.lm_head.weight",
        vision="vision_model.",
        tower="intern_vit",
        norm="mlp1.0",
        linears=("mlp1.1", "mlp1.3"),
    ),
}
"""internvl: published folders in transformers' format (names end in -hf). internvl_model: the names of the classes' parameters, which
some releases of transformers save. internvl_chat: InternVL's own folders, with remote code."""


@dataclass(frozen=True, kw_only=True)
class PaddedLinear(Rule):
    """A linear layer without bias <-> a wider one with a bias. All that is added is zero."""

    rows: int = 0
    """Outputs that the wider layer has in addition."""
    columns: int = 0
    """Inputs that it has in addition."""

    def to_hf(self, tensor: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return F.pad(tensor, (0, self.columns, 0, self.rows)), tensor.new_zeros(tensor.shape[0] + self.rows)

    def to_native(self, tensors: Sequence[torch.Tensor]) -> torch.Tensor:
        weight, bias = tensors
        rows, columns = weight.shape[0] - self.rows, weight.shape[1] - self.columns
        if not weight.is_meta:
            self._check_zero(self.hf[1], bias)
            self._check_zero(f"{self.hf[0]} beyond {rows} x {columns}", weight[rows:], weight[:, columns:])
        return weight[:rows, :columns].contiguous()

    def _check_zero(self, what: str, *added: torch.Tensor) -> None:
        largest = max((float(part.abs().max()) for part in added if part.numel()), default=0.0)
        if largest:
            raise ValueError(
                f"{what} has values up to {largest:.3g}; our projector has no biases and no such part, so it must be 0 there: "
                "these weights cannot be held without a change of what they compute"
            )


def internvl_rules(layout: str, model: ModelConfig, decoder: Sequence[Rule]) -> tuple[Rule, ...]:
    """All rules of a layout of InternVL.

    Args:
        layout: one of INTERNVL.
        model: sizes; the projector's hidden_size is at most the decoder's.
        decoder: the decoder's own rules.
    """
    names = INTERNVL[layout]
    extra = model.language.hidden_size - model.projector.hidden_size
    first, second = ((f"{linear}.weight", f"{linear}.bias") for linear in names.linears)
    return (
        *(_renamed(rule, "model.", names.language, names.head) for rule in decoder),
        *(replace(rule, hf=tuple(names.vision + name for name in rule.hf)) for rule in vision_rules(names.tower, model.vision)),
        *(Rule(native=f"projector.norm.{kind}", hf=(f"{names.norm}.{kind}",)) for kind in ("weight", "bias")),
        PaddedLinear(native="projector.linear_fc1.weight", hf=first, rows=extra),
        PaddedLinear(native="projector.linear_fc2.weight", hf=second, columns=extra),
    )


def _renamed(rule: Rule, prefix: str, language: str, head: str) -> Rule:
    return replace(rule, hf=tuple(head if name == "lm_head.weight" else language + name.removeprefix(prefix) for name in rule.hf))
