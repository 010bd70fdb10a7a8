"""What the language model's attention must know of a pack, carried through megatron's layers as packed-sequence parameters."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Optional

import torch
from megatron.core.packed_seq_params import PackedSeqParams


@dataclass
class PackedContext(PackedSeqParams):
    """Packed-sequence parameters with the context-parallel plan and the rotary tables of this rank's tokens.

    megatron's attention hands the object through to the core attention untouched; qkv_format "thd" makes it pass queries,
    keys and values as [tokens, heads, width]. The plan is what the injected attention takes: a CPPlan in training, a step's plan in
    inference.
    """

    qkv_format: str = "thd"
    plan: Any = None
    cos_TD: Optional[torch.Tensor] = None
    sin_TD: Optional[torch.Tensor] = None
