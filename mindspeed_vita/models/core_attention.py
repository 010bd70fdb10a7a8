"""The core attention of the language model: rotary embedding from the pack's own positions, then an injected attention."""

from __future__ import annotations

from typing import Any, Optional, Protocol

import torch
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_config import TransformerConfig

from mindspeed_vita.models.kept_attention import KeptAttention
from mindspeed_vita.models.packed_context import PackedContext
from mindspeed_vita.ops.tokenwise import apply_rotary
from mindspeed_vita.sharding import CPPlan


class Attend(Protocol):
    """Causal attention inside each document of a plan, over this rank's tokens: shapes [T, heads, width].

    With `kept`, a call without gradients leaves its result there, and the next one with gradients, for the same tensors, takes it.
    """

    def __call__(
        self,
        q_TND: torch.Tensor,
        k_TGD: torch.Tensor,
        v_TGD: torch.Tensor,
        cp_plan: CPPlan,
        *,
        scale: float,
        kept: Optional[KeptAttention] = None,
    ) -> torch.Tensor: ...


class PackedCoreAttention(MegatronModule):
    """Takes core_attention's place in megatron's SelfAttention on both supported lines of megatron-core.

    Args:
        config: of the language model.
        attend: who computes attention; parallel/ injects it.
        softmax_scale: factor on the scores; None takes width ** -0.5.
    """

    def __init__(
        self, config: TransformerConfig, *, attend: Attend, softmax_scale: Optional[float] = None, **unused: Any
    ) -> None:
        super().__init__(config=config)
        self.attend = attend
        self.scale = config.kv_channels**-0.5 if softmax_scale is None else softmax_scale

    def forward(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: Optional[torch.Tensor] = None,
        attn_mask_type: Any = None,
        attention_bias: Optional[torch.Tensor] = None,
        packed_seq_params: Optional[PackedContext] = None,
    ) -> torch.Tensor:
        """Queries [T, N, D], keys and values [T, G, D] of this rank's tokens to outputs [T, N * D]."""
        assert isinstance(packed_seq_params, PackedContext)
        cp_plan, cos_TD, sin_TD = packed_seq_params.cp_plan, packed_seq_params.cos_TD, packed_seq_params.sin_TD
        assert cp_plan is not None and cos_TD is not None and sin_TD is not None
        query, key = apply_rotary(query, cos_TD, sin_TD), apply_rotary(key, cos_TD, sin_TD)
        return self.attend(query, key, value, cp_plan, scale=self.scale, kept=packed_seq_params.kept).flatten(1)
