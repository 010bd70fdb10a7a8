"""The vision tower for transformers: InternViT as in the released weights, and other plain ViTs by the keys of `visual`.

This file travels with exported checkpoints: it imports only torch, transformers and its neighbours.
Shapes: N tiles, P patches, D width.
"""

from __future__ import annotations

from typing import Optional

import torch
import torch.nn.functional as F
from torch import nn
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer

from .configuration_long_vita import LongVitaVisionConfig


def _norm(config: LongVitaVisionConfig) -> nn.Module:
    if config.norm_type == "rms_norm":
        return nn.RMSNorm(config.hidden_size, eps=config.layer_norm_eps)
    return nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)


class LongVitaVisionEmbeddings(nn.Module):
    """Patches of a tile, a class token in front where the tower has one, learned positions."""

    def __init__(self, config: LongVitaVisionConfig) -> None:
        super().__init__()
        num_patches = (config.image_size // config.patch_size) ** 2
        self.class_embedding: Optional[nn.Parameter]
        self.register_parameter("class_embedding", nn.Parameter(torch.zeros(1, 1, config.hidden_size)) if config.class_token else None)
        self.patch_embedding = nn.Conv2d(
            config.num_channels, config.hidden_size, config.patch_size, stride=config.patch_size, bias=config.patch_bias
        )
        self.position_embedding = nn.Parameter(torch.zeros(1, num_patches + config.class_token, config.hidden_size))

    def forward(self, tiles_NCHW: torch.Tensor) -> torch.Tensor:
        tokens_NPD = self.patch_embedding(tiles_NCHW.to(self.patch_embedding.weight.dtype)).flatten(2).transpose(1, 2)
        if self.class_embedding is not None:
            tokens_NPD = torch.cat([self.class_embedding.expand(tokens_NPD.shape[0], -1, -1), tokens_NPD], dim=1)
        return tokens_NPD + self.position_embedding


class LongVitaVisionHeadsNorm(nn.Module):
    """RMSNorm over the queries or keys of all heads together."""

    def __init__(self, config: LongVitaVisionConfig) -> None:
        super().__init__()
        self.eps = config.layer_norm_eps
        self.weight = nn.Parameter(torch.ones(config.hidden_size))

    def forward(self, hidden_NPD: torch.Tensor) -> torch.Tensor:
        wide = hidden_NPD.float()
        return self.weight * (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)).to(hidden_NPD.dtype)


class LongVitaVisionAttention(nn.Module):
    """Bidirectional attention; the rows of qkv are ordered (3, heads, head width)."""

    def __init__(self, config: LongVitaVisionConfig) -> None:
        super().__init__()
        self.num_heads = config.num_attention_heads
        self.qkv = nn.Linear(config.hidden_size, 3 * config.hidden_size, bias=config.qkv_bias)
        self.proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.normalises = config.qk_normalization
        if self.normalises:
            self.q_norm, self.k_norm = LongVitaVisionHeadsNorm(config), LongVitaVisionHeadsNorm(config)

    def forward(self, hidden_NPD: torch.Tensor) -> torch.Tensor:
        query, key, value = self.qkv(hidden_NPD).chunk(3, dim=-1)
        if self.normalises:
            query, key = self.q_norm(query), self.k_norm(key)
        heads = [part.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for part in (query, key, value)]
        return self.proj(F.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2))


class LongVitaVisionMLP(nn.Module):
    """Two linear layers."""

    def __init__(self, config: LongVitaVisionConfig) -> None:
        super().__init__()
        self.act = ACT2FN[config.hidden_act]
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, hidden_NPD: torch.Tensor) -> torch.Tensor:
        return self.fc2(self.act(self.fc1(hidden_NPD)))


class LongVitaVisionLayer(GradientCheckpointingLayer):
    """Pre-norm block, with LayerScale where the tower has it."""

    def __init__(self, config: LongVitaVisionConfig) -> None:
        super().__init__()
        self.attn = LongVitaVisionAttention(config)
        self.mlp = LongVitaVisionMLP(config)
        self.norm1 = _norm(config)
        self.norm2 = _norm(config)
        self.ls1: Optional[nn.Parameter]
        self.ls2: Optional[nn.Parameter]
        for name in ("ls1", "ls2"):
            self.register_parameter(name, nn.Parameter(torch.ones(config.hidden_size)) if config.layer_scale else None)

    def forward(self, hidden_NPD: torch.Tensor) -> torch.Tensor:
        added = self.attn(self.norm1(hidden_NPD))
        hidden_NPD = hidden_NPD + (added if self.ls1 is None else added * self.ls1)
        added = self.mlp(self.norm2(hidden_NPD))
        return hidden_NPD + (added if self.ls2 is None else added * self.ls2)


class LongVitaVisionEncoder(nn.Module):
    """The stack of blocks."""

    def __init__(self, config: LongVitaVisionConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList([LongVitaVisionLayer(config) for _ in range(config.num_hidden_layers)])

    def forward(self, hidden_NPD: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            hidden_NPD = layer(hidden_NPD)
        return hidden_NPD


class LongVitaVisionModel(nn.Module):
    """The tower. InternViT has no norm before its first or after its last layer."""

    def __init__(self, config: LongVitaVisionConfig) -> None:
        super().__init__()
        self.embeddings = LongVitaVisionEmbeddings(config)
        self.pre_layernorm = _norm(config) if config.first_norm else nn.Identity()
        self.encoder = LongVitaVisionEncoder(config)
        self.post_layernorm = _norm(config) if config.final_norm else nn.Identity()
        self.num_extra = int(config.class_token)

    def forward(self, tiles_NCHW: torch.Tensor) -> torch.Tensor:
        """[N, 3, H, W] -> [N, P, D], without the class token."""
        hidden_NPD = self.encoder(self.pre_layernorm(self.embeddings(tiles_NCHW)))
        return self.post_layernorm(hidden_NPD)[:, self.num_extra :]
