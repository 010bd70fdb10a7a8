"""megatron's decoder layer with what it recomputes in the backward pass: the same on every line of megatron-core and in MindSpeed-LLM."""

from __future__ import annotations

import copy
from contextlib import nullcontext
from typing import Any, Optional

import torch
from megatron.core import tensor_parallel
from megatron.core.transformer.transformer_layer import TransformerLayer

from mindspeed_vita.choices import Recompute
from mindspeed_vita.config.recompute import WHOLE_LAYERS
from mindspeed_vita.models.kept_attention import KeptAttention
from mindspeed_vita.models.packed_context import PackedContext


class DecoderLayer(TransformerLayer):
    """A TransformerLayer that may recompute itself, whole or but for its attention. Its MLP knows the other modes.

    Args:
        recompute: what this layer recomputes.
        shift: added to the layer's number, which megatron derives from the rank, for stages of equal size.
    """

    def __init__(
        self, *arguments: Any, recompute: Recompute = "none", layer_number: int = 1, shift: int = 0, **keywords: Any
    ) -> None:
        super().__init__(*arguments, layer_number=layer_number + shift, **keywords)
        self.recompute, self.mlp.recompute = recompute, recompute

    def forward(
        self, hidden_states: torch.Tensor, *, packed_seq_params: Optional[PackedContext] = None, **keywords: Any
    ) -> tuple[torch.Tensor, Optional[torch.Tensor]]:
        """Hidden states [L, 1, H] and megatron's context, which is None in a decoder."""
        assert isinstance(packed_seq_params, PackedContext)
        if self.recompute == "none" or packed_seq_params.recomputing or not self.training or not torch.is_grad_enabled():
            return self._once(hidden_states, packed_seq_params, keywords)
        if not hidden_states.requires_grad and any(parameter.requires_grad for parameter in self.parameters()):
            # what is recomputed gets gradients only behind an input that wants one
            hidden_states = hidden_states.detach().requires_grad_()
        if self.recompute not in WHOLE_LAYERS:
            return self._once(hidden_states, packed_seq_params, keywords)
        context = copy.copy(packed_seq_params)
        context.recomputing = True
        if self.recompute == "full_but_attention":
            context.kept = KeptAttention()

        def run(hidden: torch.Tensor) -> tuple[torch.Tensor, Optional[torch.Tensor]]:
            return self(hidden, packed_seq_params=context, **keywords)  # type: ignore[no-any-return]

        inputs = packed_seq_params.layer_inputs
        with nullcontext() if inputs is None else inputs.offloaded():
            return tensor_parallel.checkpoint(run, False, hidden_states)  # type: ignore[no-any-return]

    def _once(
        self, hidden_states: torch.Tensor, context: PackedContext, keywords: dict[str, Any]
    ) -> tuple[torch.Tensor, Optional[torch.Tensor]]:
        return super().forward(hidden_states=hidden_states, packed_seq_params=context, **keywords)  # type: ignore[no-any-return]
