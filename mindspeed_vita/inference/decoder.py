"""The decoder's forward pass without what only training needs: the same modules and weights, no autograd functions, no microbatches.

megatron's own forward spends about as long in Python as a small layer's arithmetic takes, which one token at a time cannot hide.
tests/unit/inference/test_decoder.py compares the two. Shapes: T tokens of this rank, H hidden, N query heads, G key heads, D width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Optional

import torch
import torch.distributed as dist
import torch.nn.functional as F

from mindspeed_vita.config import LanguageConfig
from mindspeed_vita.inference.cached_attention import CachedAttention
from mindspeed_vita.inference.plans import DecodePlan, PrefillPlan
from mindspeed_vita.ops.tokenwise import apply_rotary, swiglu
from mindspeed_vita.parallel.layout import ParallelLayout


@dataclass(frozen=True)
class _Layer:
    """The parts of one layer, looked up once: a look-up in a module costs as much as a small operation."""

    attention_norm: Any
    qkv: tuple[torch.Tensor, Optional[torch.Tensor]]
    query_norm: Any
    key_norm: Any
    out: tuple[torch.Tensor, Optional[torch.Tensor]]
    mlp_norm: Any
    gate_and_up: tuple[torch.Tensor, Optional[torch.Tensor]]
    down: tuple[torch.Tensor, Optional[torch.Tensor]]

    @classmethod
    def of(cls, layer: Any) -> _Layer:
        """From megatron's layer."""
        attention, mlp = layer.self_attention, layer.mlp
        qkv, out, gate_and_up, down = (
            (linear.weight, linear.bias) for linear in (attention.linear_qkv, attention.linear_proj, mlp.linear_fc1, mlp.linear_fc2)
        )
        norms = attention.q_layernorm, attention.k_layernorm
        return cls(layer.input_layernorm, qkv, *norms, out, layer.pre_mlp_layernorm, gate_and_up, down)


class Decoder:
    """All layers of a language model on one pipeline stage, over a cache.

    Args:
        language_model: megatron's GPTModel, built without sequence parallelism.
        config: its sizes.
        layout: tensor parallelism; every tp rank has all tokens.
        attention: over the cache.
    """

    def __init__(self, language_model: Any, config: LanguageConfig, layout: ParallelLayout, attention: CachedAttention) -> None:
        assert not language_model.config.sequence_parallel
        self.layers, self.final_norm = [_Layer.of(layer) for layer in language_model.decoder.layers], language_model.decoder.final_layernorm
        self.attention, self.width, self.scale = attention, config.head_dim, config.head_dim**-0.5
        self.kv_heads = config.num_kv_heads // layout.tp_size
        self.group = layout.tp_group if layout.tp_size > 1 else None

    def __call__(self, hidden_TH: torch.Tensor, plan: PrefillPlan | DecodePlan, cos_TD: torch.Tensor, sin_TD: torch.Tensor) -> torch.Tensor:
        """Final hidden states [T, H].

        Args:
            hidden_TH: embeddings of the plan's tokens.
            plan: what the step wants of this rank.
            cos_TD, sin_TD: rotary tables of those tokens.
        """
        for number, layer in enumerate(self.layers):
            hidden_TH = hidden_TH + self._attend(number, layer, layer.attention_norm(hidden_TH), plan, cos_TD, sin_TD)
            gate_and_up = F.linear(layer.mlp_norm(hidden_TH), *layer.gate_and_up)
            hidden_TH = hidden_TH + self._row_linear(swiglu(gate_and_up), *layer.down)
        return self.final_norm(hidden_TH)

    def _attend(
        self, number: int, layer: _Layer, x_TH: torch.Tensor, plan: PrefillPlan | DecodePlan, cos_TD: torch.Tensor, sin_TD: torch.Tensor
    ) -> torch.Tensor:
        qkv_TGX = F.linear(x_TH, *layer.qkv).unflatten(-1, (self.kv_heads, -1))
        query, key, value = qkv_TGX.split([qkv_TGX.shape[-1] - 2 * self.width, self.width, self.width], dim=-1)
        query = query.reshape(len(x_TH), -1, self.width)
        if layer.query_norm is not None:
            query, key = layer.query_norm(query), layer.key_norm(key)
        heads = query.shape[1]
        rotated = apply_rotary(torch.cat([query, key], dim=1), cos_TD, sin_TD)  # one call for both
        out_TND = self.attention.attend(number, rotated[:, :heads], rotated[:, heads:], value, plan, scale=self.scale)
        return self._row_linear(out_TND.flatten(1), *layer.out)

    def _row_linear(self, x_TX: torch.Tensor, weight: torch.Tensor, bias: Optional[torch.Tensor]) -> torch.Tensor:
        """A layer whose inputs are spread over tensor parallelism: parts are summed, then comes the bias."""
        if self.group is None:
            return F.linear(x_TX, weight, bias)
        out_TH = F.linear(x_TX, weight)
        dist.all_reduce(out_TH, group=self.group)
        return out_TH if bias is None else out_TH + bias
