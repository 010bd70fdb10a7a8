"""InternViT: a pre-norm ViT with a class token, learned positions and LayerScale.

Its layers are our own modules rather than megatron's TransformerLayer: the tower must not be touched by what a training
framework patches into the language model's layers. linears.py decides whether a rank holds all of a linear layer.

Shapes: B tiles, P patches of a tile + 1 class token, H hidden, N heads of this rank, D width of a head.
"""

from __future__ import annotations

from typing import Any, Optional

import torch
import torch.nn.functional as F
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.transformer.utils import make_sharded_tensors_for_checkpoint
from torch import nn
from torch.utils.checkpoint import checkpoint

from mindspeed_vita.config import VisionConfig
from mindspeed_vita.models.vision.linears import TowerLinears
from mindspeed_vita.ops.attention import tile_attention


class TileSelfAttention(nn.Module):
    """Bidirectional self-attention; linear_qkv's rows are ordered (heads, 3, width of a head)."""

    def __init__(self, config: VisionConfig, linears: TowerLinears) -> None:
        super().__init__()
        self.num_heads = config.num_heads // linears.tp_size
        self.linear_qkv = linears.column(config.hidden_size, 3 * config.hidden_size)
        self.linear_proj = linears.row(config.hidden_size, config.hidden_size)

    def forward(self, x_BPH: torch.Tensor) -> torch.Tensor:
        qkv = self.linear_qkv(x_BPH).unflatten(-1, (self.num_heads, 3, -1))
        out_BPND = tile_attention(*qkv.unbind(-2))
        return self.linear_proj(out_BPND.flatten(-2))


class TileMLP(nn.Module):
    """Two linear layers with exact GELU between them."""

    def __init__(self, config: VisionConfig, linears: TowerLinears) -> None:
        super().__init__()
        self.linear_fc1 = linears.column(config.hidden_size, config.ffn_hidden_size)
        self.linear_fc2 = linears.row(config.ffn_hidden_size, config.hidden_size)

    def forward(self, x_BPH: torch.Tensor) -> torch.Tensor:
        return self.linear_fc2(F.gelu(self.linear_fc1(x_BPH)))


class InternVisionLayer(nn.Module):
    """Attention and MLP, each pre-normed and scaled by a learned vector (LayerScale)."""

    def __init__(self, config: VisionConfig, linears: TowerLinears) -> None:
        super().__init__()
        self.input_layernorm = nn.LayerNorm(config.hidden_size, eps=config.norm_eps)
        self.self_attention = TileSelfAttention(config, linears)
        self.ls1 = nn.Parameter(torch.full((config.hidden_size,), config.layer_scale_init))
        self.pre_mlp_layernorm = nn.LayerNorm(config.hidden_size, eps=config.norm_eps)
        self.mlp = TileMLP(config, linears)
        self.ls2 = nn.Parameter(torch.full((config.hidden_size,), config.layer_scale_init))

    def forward(self, x_BPH: torch.Tensor) -> torch.Tensor:
        x_BPH = x_BPH + self.ls1 * self.self_attention(self.input_layernorm(x_BPH))
        return x_BPH + self.ls2 * self.mlp(self.pre_mlp_layernorm(x_BPH))


class InternVisionTower(MegatronModule):
    """Normalised tiles to patch features; no final norm, as in the released weights."""

    def __init__(
        self,
        config: VisionConfig,
        *,
        transformer_config: TransformerConfig,
        recompute: bool = False,
        linears: Optional[TowerLinears] = None,
    ) -> None:
        super().__init__(config=transformer_config)
        self.recompute, self.linears = recompute, linears or TowerLinears()
        self.class_token = nn.Parameter(torch.zeros(1, 1, config.hidden_size))
        self.conv1 = nn.Conv2d(3, config.hidden_size, kernel_size=config.patch_size, stride=config.patch_size)
        self.position_embeddings = nn.Embedding(config.grid**2 + 1, config.hidden_size)
        self.layers = nn.ModuleList(InternVisionLayer(config, self.linears) for _ in range(config.num_layers))

    def forward(self, tiles_BCHW: torch.Tensor) -> torch.Tensor:
        """Features of every patch, the class token dropped: [B, grid * grid, H]."""
        patches = self.conv1(tiles_BCHW).flatten(2).transpose(1, 2)
        x_BPH = torch.cat([self.class_token.expand(len(patches), -1, -1), patches], dim=1) + self.position_embeddings.weight
        for layer in self.layers:
            if self.recompute and torch.is_grad_enabled():
                x_BPH = checkpoint(layer, x_BPH, use_reentrant=False, preserve_rng_state=False)
            else:
                x_BPH = layer(x_BPH)
        return self.linears.leave(x_BPH[:, 1:])

    def sharded_state_dict(self, prefix: str = "", sharded_offsets: Any = (), metadata: Optional[dict[str, Any]] = None) -> dict[str, Any]:
        """Which part of which tensor this rank holds, for native checkpoints; the same names and shapes however the tower is cut."""
        cut = {
            name: parameter.partition_dim  # type: ignore[attr-defined]
            for name, parameter in self.named_parameters()
            if getattr(parameter, "tensor_model_parallel", False)
        }
        return make_sharded_tensors_for_checkpoint(self.state_dict(keep_vars=True), prefix, cut, sharded_offsets)
