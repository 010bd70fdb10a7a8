"""What the language model's attention must know of a pack, carried through megatron's layers as packed-sequence parameters."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Optional

import torch
from megatron.core.packed_seq_params import PackedSeqParams

from mindspeed_vita.models.kept_attention import KeptAttention
from mindspeed_vita.models.layer_inputs import LayerInputs
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
    recomputing: bool = False
    """Whether a layer is called from its own checkpoint."""
    kept: Optional[KeptAttention] = None
    """Attention's result of the layer that is being recomputed; each layer has a context of its own for it. None: it is not kept."""
    layer_inputs: Optional[LayerInputs] = None
    """Where the micro-batch's recomputed layers put their inputs. None: they stay on the device."""
