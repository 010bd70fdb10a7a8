"""What the language model's attention must know of a pack, carried through megatron's layers as packed-sequence parameters."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Optional

import torch
from megatron.core.packed_seq_params import PackedSeqParams

from mindspeed_vita.sharding import CPPlan


@dataclass
class PackedContext(PackedSeqParams):
    """Packed-sequence parameters with the context-parallel plan and the rotary tables of this rank's tokens.

    megatron's attention hands the object through to the core attention untouched; qkv_format "thd" makes it pass queries,
    keys and values as [tokens, heads, width]. The tables are in the dtype of the activations.
    """

    qkv_format: str = "thd"
    cp_plan: Optional[CPPlan] = None
    cos_TD: Optional[torch.Tensor] = None
    sin_TD: Optional[torch.Tensor] = None
