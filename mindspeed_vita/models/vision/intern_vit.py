"""InternViT: a pre-norm ViT with a class token, learned positions and LayerScale.

Its layers are our own modules rather than megatron's TransformerLayer: the tower is replicated (tiles, not heads, are shared
out), and must not be touched by what a training framework patches into the language model's layers.

Shapes: B tiles, P patches of a tile + 1 class token, H hidden, N heads, D width of a head.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import nn
from torch.utils.checkpoint import checkpoint

from mindspeed_vita.config import VisionConfig
from mindspeed_vita.ops.attention import tile_attention


class TileSelfAttention(nn.Module):
    """Bidirectional self-attention; linear_qkv's rows are ordered (heads, 3, width of a head)."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        self.linear_qkv = nn.Linear(config.hidden_size, 3 * config.hidden_size)
        self.linear_proj = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, x_BPH: torch.Tensor) -> torch.Tensor:
        qkv = self.linear_qkv(x_BPH).unflatten(-1, (self.num_heads, 3, -1))
        out_BPND = tile_attention(*qkv.unbind(-2))
        return self.linear_proj(out_BPND.flatten(-2))


class TileMLP(nn.Module):
    """Two linear layers with exact GELU between them."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.linear_fc1 = nn.Linear(config.hidden_size, config.ffn_hidden_size)
        self.linear_fc2 = nn.Linear(config.ffn_hidden_size, config.hidden_size)

    def forward(self, x_BPH: torch.Tensor) -> torch.Tensor:
        return self.linear_fc2(F.gelu(self.linear_fc1(x_BPH)))


class InternVisionLayer(nn.Module):
    """Attention and MLP, each pre-normed and scaled by a learned vector (LayerScale)."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.input_layernorm = nn.LayerNorm(config.hidden_size, eps=config.norm_eps)
        self.self_attention = TileSelfAttention(config)
        self.ls1 = nn.Parameter(torch.full((config.hidden_size,), config.layer_scale_init))
        self.pre_mlp_layernorm = nn.LayerNorm(config.hidden_size, eps=config.norm_eps)
        self.mlp = TileMLP(config)
        self.ls2 = nn.Parameter(torch.full((config.hidden_size,), config.layer_scale_init))

    def forward(self, x_BPH: torch.Tensor) -> torch.Tensor:
        x_BPH = x_BPH + self.ls1 * self.self_attention(self.input_layernorm(x_BPH))
        return x_BPH + self.ls2 * self.mlp(self.pre_mlp_layernorm(x_BPH))


class InternVisionTower(MegatronModule):
    """Normalised tiles to patch features; no final norm, as in the released weights."""

    def __init__(self, config: VisionConfig, *, transformer_config: TransformerConfig, recompute: bool = False) -> None:
        super().__init__(config=transformer_config)
        self.recompute = recompute
        self.class_token = nn.Parameter(torch.zeros(1, 1, config.hidden_size))
        self.conv1 = nn.Conv2d(3, config.hidden_size, kernel_size=config.patch_size, stride=config.patch_size)
        self.position_embeddings = nn.Embedding(config.grid**2 + 1, config.hidden_size)
        self.layers = nn.ModuleList(InternVisionLayer(config) for _ in range(config.num_layers))

    def forward(self, tiles_BCHW: torch.Tensor) -> torch.Tensor:
        """Features of every patch, the class token dropped: [B, grid * grid, H]."""
        patches = self.conv1(tiles_BCHW).flatten(2).transpose(1, 2)
        x_BPH = torch.cat([self.class_token.expand(len(patches), -1, -1), patches], dim=1) + self.position_embeddings.weight
        for layer in self.layers:
            if self.recompute and torch.is_grad_enabled():
                x_BPH = checkpoint(layer, x_BPH, use_reentrant=False, preserve_rng_state=False)
            else:
                x_BPH = layer(x_BPH)
        return x_BPH[:, 1:]
