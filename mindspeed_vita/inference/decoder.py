"""The decoder's forward pass without what only training needs: the same modules and weights, no autograd functions, no microbatches.

megatron's own forward spends about as long in Python as a small layer's arithmetic takes, which one token at a time cannot hide.
tests/unit/inference/test_decoder.py compares the two. Shapes: T tokens of this rank, H hidden, N query heads, G key heads, D width.
"""

from __future__ import annotations

from typing import Any, Optional

import torch
import torch.distributed as dist
import torch.nn.functional as F

from mindspeed_vita.config import LanguageConfig
from mindspeed_vita.inference.cached_attention import CachedAttention
from mindspeed_vita.inference.plans import DecodePlan, PrefillPlan
from mindspeed_vita.ops.tokenwise import apply_rotary, swiglu
from mindspeed_vita.parallel.layout import ParallelLayout


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
        self.layers, self.final_norm = list(language_model.decoder.layers), language_model.decoder.final_layernorm
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
            attended = self._attend(number, layer.self_attention, layer.input_layernorm(hidden_TH), plan, cos_TD, sin_TD)
            hidden_TH = hidden_TH + attended
            gate_and_up = _linear(layer.mlp.linear_fc1, layer.pre_mlp_layernorm(hidden_TH))
            hidden_TH = hidden_TH + self._row_linear(layer.mlp.linear_fc2, swiglu(gate_and_up))
        return self.final_norm(hidden_TH)

    def _attend(
        self, number: int, module: Any, normed_TH: torch.Tensor, plan: PrefillPlan | DecodePlan, cos_TD: torch.Tensor, sin_TD: torch.Tensor
    ) -> torch.Tensor:
        qkv_TGX = _linear(module.linear_qkv, normed_TH).unflatten(-1, (self.kv_heads, -1))
        query, key, value = qkv_TGX.split([qkv_TGX.shape[-1] - 2 * self.width, self.width, self.width], dim=-1)
        query = query.reshape(len(normed_TH), -1, self.width)
        if module.q_layernorm is not None:
            query, key = module.q_layernorm(query), module.k_layernorm(key)
        heads = query.shape[1]
        rotated = apply_rotary(torch.cat([query, key], dim=1), cos_TD, sin_TD)  # one call for both
        query, key = rotated[:, :heads], rotated[:, heads:]
        out_TND = self.attention.attend(number, query, key, value, plan, scale=self.scale)
        return self._row_linear(module.linear_proj, out_TND.flatten(1))

    def _row_linear(self, module: Any, x_TX: torch.Tensor) -> torch.Tensor:
        """A layer whose inputs are spread over tensor parallelism: parts are summed, then comes the bias."""
        out_TH = F.linear(x_TX, module.weight)
        if self.group is not None:
            dist.all_reduce(out_TH, group=self.group)
        bias: Optional[torch.Tensor] = getattr(module, "bias", None)
        return out_TH if bias is None else out_TH + bias


def _linear(module: Any, x_TX: torch.Tensor) -> torch.Tensor:
    return F.linear(x_TX, module.weight, module.bias)
