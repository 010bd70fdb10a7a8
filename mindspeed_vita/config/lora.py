"""LoRA: the recipe's section, and the linear layers that can have an adapter, by the names that peft gives them in an export."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

from mindspeed_vita.choices import Module
from mindspeed_vita.config.kinds import Count, Flag, Listed, PartialShare, Rate, Section, Text, Texts

LORA_TARGETS: dict[str, tuple[str, ...]] = {
    "language": ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
    "vision": ("qkv", "proj", "fc1", "fc2"),
    "projector": ("mlp.0", "mlp.2"),
}
"""Part of the model -> ends of the names of its linear layers in an export. No name occurs in two parts."""


@dataclass(frozen=True, kw_only=True)
class LoraConfig(Section):
    """LoRA (Hu et al., 2021): the weights stay as they are, and low-rank adapters of linear layers train."""

    rank: Count = 0
    """Rank of the adapters; 0: there are none, and train.modules train as a whole."""
    alpha: Rate = 16.0
    """An adapter's output is multiplied by alpha / rank."""
    rslora: Flag = False
    """Multiply by alpha / sqrt(rank) instead (rsLoRA, Kalajdzievski, 2023)."""
    dropout: PartialShare = 0.0
    """Share of an adapter's inputs that are dropped in training."""
    parts: Annotated[tuple[Module, ...], Listed(least=1)] = ("language",)
    """Parts that have adapters: language, vision, projector. train.modules must name them. Everything else is frozen."""
    targets: Texts = ()
    """Linear layers that have adapters, by their names in an export: q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj of
    the decoder, qkv, proj, fc1, fc2 of the tower, mlp.0, mlp.2 of the projector. Empty: all of the parts."""
    base: Text = ""
    """Folder of the weights under the adapters; empty: what checkpoint.init_from names. Checkpoints of adapters record it. Set it where
    the folder has moved."""
    base_fingerprint: Text = ""
    """Which weights `base` must hold. A run writes it into its checkpoints; leave it out of recipes."""

    @property
    def scale(self) -> float:
        """What an adapter's output is multiplied by."""
        return self.alpha / (math.sqrt(self.rank) if self.rslora else self.rank)

    def of(self, part: str) -> tuple[str, ...]:
        """The names of a part's linear layers that have adapters."""
        if not self.rank or part not in self.parts:
            return ()
        return tuple(name for name in LORA_TARGETS[part] if not self.targets or name in self.targets)
