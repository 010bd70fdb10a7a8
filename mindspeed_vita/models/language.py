"""The language model: a decoder of any family over megatron.core's GPTModel, with our core attention and norms that run everywhere."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Optional

import torch
import torch.nn.functional as F
from megatron.core.fusions.fused_bias_dropout import get_bias_dropout_add
from megatron.core.models.gpt.gpt_model import GPTModel
from megatron.core.tensor_parallel.layers import ColumnParallelLinear, RowParallelLinear
from megatron.core.transformer.attention import SelfAttention, SelfAttentionSubmodules
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.mlp import MLP, MLPSubmodules
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules, get_num_layers_to_build
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.transformer.transformer_layer import TransformerLayerSubmodules, get_transformer_layer_offset

from mindspeed_vita.choices import Recompute
from mindspeed_vita.config import LanguageConfig, LanguageTraits, language_traits
from mindspeed_vita.config.recompute import NO_RECOMPUTATION, Recomputation
from mindspeed_vita.models.core_attention import Attend, PackedCoreAttention
from mindspeed_vita.models.decoder_layer import DecoderLayer
from mindspeed_vita.models.made_again import made_again, not_saved
from mindspeed_vita.ops.tokenwise import rms_norm, swiglu
from mindspeed_vita.platform.megatron_compat import mlp_width_argument, vp_stage_argument


def language_transformer_config(
    config: LanguageConfig,
    *,
    init_std: float,
    dtype: torch.dtype,
    tp: int,
    pp: int,
    cp: int,
    init_on_cpu: bool,
    sequence_parallel: bool = True,
    virtual_stages: int = 1,
) -> TransformerConfig:
    """megatron's configuration of the decoder.

    Args:
        config: family and sizes.
        init_std: of the initial weights.
        dtype: of parameters and activations.
        tp, pp, cp: sizes of the parallel axes.
        init_on_cpu: draw full weights on the host, so that they do not depend on tp.
        sequence_parallel: tp ranks share out the tokens between linear layers. Training always does. In inference one new token does
            not divide by tp, so each tp rank holds all tokens.
        virtual_stages: chunks of each pipeline rank.
    """
    traits = language_traits(config.family)
    told = TransformerConfig(
        num_layers=config.num_layers,
        hidden_size=config.hidden_size,
        num_attention_heads=config.num_heads,
        num_query_groups=config.num_kv_heads,
        kv_channels=config.head_dim,
        ffn_hidden_size=config.ffn_hidden_size,
        normalization="RMSNorm",
        layernorm_epsilon=config.norm_eps,
        gated_linear_unit=True,
        activation_func=F.silu,
        add_bias_linear=False,
        add_qkv_bias=traits.qkv_bias,
        qk_layernorm=traits.qk_norm,
        attention_dropout=0.0,
        hidden_dropout=0.0,
        init_method_std=init_std,
        params_dtype=dtype,
        pipeline_dtype=dtype,
        bf16=dtype is torch.bfloat16,
        tensor_model_parallel_size=tp,
        pipeline_model_parallel_size=pp,
        context_parallel_size=cp,
        sequence_parallel=sequence_parallel and tp > 1,
        calculate_per_token_loss=True,
        use_cpu_initialization=init_on_cpu,
        # fused kernels of apex and TransformerEngine, which are CUDA only
        masked_softmax_fusion=False,
        bias_activation_fusion=False,
        bias_dropout_fusion=False,
        apply_rope_fusion=False,
        gradient_accumulation_fusion=False,
        persist_layer_norm=False,
        # without these an interleaved pipeline computes wrong gradients over gloo; a plain one keeps megatron's defaults
        **({"overlap_p2p_comm": True, "batch_p2p_comm": False, "deallocate_pipeline_outputs": False} if virtual_stages > 1 else {}),
    )
    # set afterwards: megatron would demand equal chunks, which ours need not be
    told.virtual_pipeline_model_parallel_size = virtual_stages if virtual_stages > 1 else None
    return told


class RMSNorm(torch.nn.RMSNorm):
    """RMSNorm with megatron's constructor; tags its weight for the gradient sum of sequence parallelism."""

    def __init__(self, config: TransformerConfig, hidden_size: int, eps: float = 1e-6, **unused: object) -> None:
        super().__init__(hidden_size, eps=eps, dtype=config.params_dtype)
        self.weight.sequence_parallel = config.sequence_parallel  # type: ignore[attr-defined]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Normalises the last dimension."""
        assert self.eps is not None
        return rms_norm(x, self.weight, self.eps)


class GatedMLP(MLP):
    """megatron's MLP, whose gate goes through ops/. A class rather than a spec: megatron warns of specs of other classes than its own."""

    recompute: Recompute = "none"
    """Set by the layer. With mlp, the backward pass makes the input of the second linear layer again from the MLP's input. With selective,
    from the output of the first one, which costs no matrix product."""

    def __init__(self, config: TransformerConfig, **unused: Any) -> None:
        linears = MLPSubmodules(linear_fc1=ColumnParallelLinear, linear_fc2=RowParallelLinear)
        super().__init__(config, linears, **mlp_width_argument(config.ffn_hidden_size))

    def forward(self, hidden_states: torch.Tensor, *unused: Any, **also_unused: Any) -> tuple[torch.Tensor, Optional[torch.Tensor]]:
        """Output and its bias, which is None without linear biases."""
        again = self.training and torch.is_grad_enabled()
        if again and self.recompute == "mlp":
            product = made_again(lambda hidden: swiglu(self._gate_and_up(hidden)), hidden_states)
        elif again and self.recompute == "selective":
            product = made_again(swiglu, self._gate_and_up(hidden_states))
        else:
            product = swiglu(self._gate_and_up(hidden_states))
        with not_saved(product):
            return self.linear_fc2(product)

    def _gate_and_up(self, hidden_states: torch.Tensor) -> torch.Tensor:
        gate_and_up, bias = self.linear_fc1(hidden_states)
        return gate_and_up if bias is None else gate_and_up + bias


class BiasedRowParallelLinear(RowParallelLinear):
    """megatron's linear layer, with a bias where its caller asks for none: megatron has one switch for all linear layers."""

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        super().__init__(*arguments, **{**keywords, "bias": True})


Norm = Callable[..., torch.nn.Module]
"""Constructor of a norm: (config, hidden_size, eps)."""


def layer_shift(transformer_config: TransformerConfig, layers: Optional[range], vp_stage: Optional[int] = None) -> int:
    """How far the numbers of this stage's layers are from those that megatron gives them; 0 where it decides which layers there are."""
    return 0 if layers is None else layers.start - get_transformer_layer_offset(transformer_config, **vp_stage_argument(vp_stage))


def _layer_spec(traits: LanguageTraits, attend: Attend, norm: Norm, recompute: Recompute, shift: int) -> ModuleSpec:
    return ModuleSpec(
        module=DecoderLayer,
        params={"recompute": recompute, "shift": shift},
        submodules=TransformerLayerSubmodules(
            input_layernorm=norm,
            self_attention=ModuleSpec(
                module=SelfAttention,
                params={"attn_mask_type": AttnMaskType.causal},
                submodules=SelfAttentionSubmodules(
                    linear_qkv=ColumnParallelLinear,
                    core_attention=ModuleSpec(module=PackedCoreAttention, params={"attend": attend}),
                    linear_proj=BiasedRowParallelLinear if traits.out_bias else RowParallelLinear,
                    # over each head, before the core attention and so before the rotary embedding
                    q_layernorm=norm if traits.qk_norm else None,
                    k_layernorm=norm if traits.qk_norm else None,
                ),
            ),
            self_attn_bda=get_bias_dropout_add,
            pre_mlp_layernorm=norm,
            mlp=GatedMLP,
            mlp_bda=get_bias_dropout_add,
        ),
    )


def build_language_model(
    config: LanguageConfig,
    transformer_config: TransformerConfig,
    *,
    attend: Attend,
    pre_process: bool,
    post_process: bool,
    norm: Norm = RMSNorm,
    recompute: Recomputation = NO_RECOMPUTATION,
    layers: Optional[range] = None,
    vp_stage: Optional[int] = None,
) -> GPTModel:
    """The part of the decoder that lives on this pipeline stage: `layers` by their number in the whole model, or as megatron deals them.

    Positions enter in the core attention only, so the model is built without a position embedding. VitaModel calls its
    embedding, decoder and output layer itself.
    """
    traits, shift = language_traits(config.family), layer_shift(transformer_config, layers, vp_stage)
    number = get_num_layers_to_build(transformer_config, **vp_stage_argument()) if layers is None else len(layers)
    specs = [_layer_spec(traits, attend, norm, recompute.of_layer(place), shift) for place in range(number)]
    return GPTModel(
        config=transformer_config,
        transformer_layer_spec=TransformerBlockSubmodules(layer_specs=specs, layer_norm=norm),
        vocab_size=config.vocab_size,
        max_sequence_length=config.max_positions,
        pre_process=pre_process,
        post_process=post_process,
        parallel_output=True,
        share_embeddings_and_output_weights=config.tie_embeddings,
        position_embedding_type="none",
        **vp_stage_argument(vp_stage),
    )
