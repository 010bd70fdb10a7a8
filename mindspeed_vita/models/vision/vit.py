"""A plain ViT: InternViT, SigLIP and CLIP by their traits (config/towers.py) and sizes (VisionConfig).

Its layers are our own modules rather than megatron's TransformerLayer: the tower must not be touched by what a training
framework patches into the language model's layers. linears.py decides whether a rank holds all of a linear layer.

Shapes: B tiles, P patches of a tile, and a class token where the tower has one, H hidden.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Optional

import torch
import torch.nn.functional as F
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import nn
from torch.utils.checkpoint import checkpoint

from mindspeed_vita.config import TowerTraits, VisionConfig, tower_traits
from mindspeed_vita.models.vision.attention import AttendTiles, TileSelfAttention
from mindspeed_vita.models.vision.linears import TowerLinears
from mindspeed_vita.models.vision.sharded_heads import sharded_tower_state
from mindspeed_vita.ops.attention import tile_attention


def quick_gelu(x: torch.Tensor) -> torch.Tensor:
    """What CLIP was trained with."""
    return x * torch.sigmoid(1.702 * x)


_ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "gelu": F.gelu, "gelu_tanh": partial(F.gelu, approximate="tanh"), "quick_gelu": quick_gelu,
}


def _norm(config: VisionConfig) -> nn.Module:
    if config.norm == "rms_norm":
        return nn.RMSNorm(config.hidden_size, eps=config.norm_eps)
    return nn.LayerNorm(config.hidden_size, eps=config.norm_eps)


class TileMLP(nn.Module):
    """Two linear layers with the tower's activation between them."""

    def __init__(self, config: VisionConfig, traits: TowerTraits, linears: TowerLinears) -> None:
        super().__init__()
        self.linear_fc1 = linears.column(config.hidden_size, config.ffn_hidden_size, True)
        self.linear_fc2 = linears.row(config.ffn_hidden_size, config.hidden_size, True)
        self.activation = _ACTIVATIONS[traits.activation]

    def forward(self, x_BPH: torch.Tensor) -> torch.Tensor:
        return self.linear_fc2(self.activation(self.linear_fc1(x_BPH)))


class TowerLayer(nn.Module):
    """Attention and MLP, each pre-normed and, with LayerScale, scaled by a learned vector."""

    def __init__(self, config: VisionConfig, traits: TowerTraits, linears: TowerLinears, attend: AttendTiles) -> None:
        super().__init__()
        self.input_layernorm = _norm(config)
        self.self_attention = TileSelfAttention(config, linears, attend)
        self.pre_mlp_layernorm = _norm(config)
        self.mlp = TileMLP(config, traits, linears)
        for name in ("ls1", "ls2"):
            scale = nn.Parameter(torch.full((config.hidden_size,), config.layer_scale_init)) if traits.layer_scale else None
            self.register_parameter(name, scale)

    def forward(self, x_BPH: torch.Tensor) -> torch.Tensor:
        added = self.self_attention(self.input_layernorm(x_BPH))
        x_BPH = x_BPH + (added if self.ls1 is None else self.ls1 * added)
        added = self.mlp(self.pre_mlp_layernorm(x_BPH))
        return x_BPH + (added if self.ls2 is None else self.ls2 * added)


class VitTower(MegatronModule):
    """Normalised tiles to features of their patches."""

    def __init__(
        self,
        config: VisionConfig,
        *,
        transformer_config: TransformerConfig,
        recompute: bool = False,
        linears: Optional[TowerLinears] = None,
        attend: AttendTiles = tile_attention,
    ) -> None:
        super().__init__(config=transformer_config)
        traits = tower_traits(config.tower)
        self.recompute, self.linears, self.with_class = recompute, linears or TowerLinears(), traits.class_token
        if traits.class_token:
            self.class_token = nn.Parameter(torch.zeros(1, 1, config.hidden_size))
        self.conv1 = nn.Conv2d(3, config.hidden_size, kernel_size=config.patch_size, stride=config.patch_size, bias=traits.patch_bias)
        self.position_embeddings = nn.Embedding(config.grid**2 + traits.class_token, config.hidden_size)
        self.first_layernorm = _norm(config) if traits.first_norm else None
        self.layers = nn.ModuleList(TowerLayer(config, traits, self.linears, attend) for _ in range(config.num_layers))
        self.final_layernorm = _norm(config) if traits.final_norm else None

    def forward(self, tiles_BCHW: torch.Tensor) -> torch.Tensor:
        """Features of every patch: [B, grid * grid, H]."""
        x_BPH = self.conv1(tiles_BCHW).flatten(2).transpose(1, 2)
        if self.with_class:
            x_BPH = torch.cat([self.class_token.expand(len(x_BPH), -1, -1), x_BPH], dim=1)
        x_BPH = x_BPH + self.position_embeddings.weight
        if self.first_layernorm is not None:
            x_BPH = self.first_layernorm(x_BPH)
        for layer in self.layers:
            if self.recompute and torch.is_grad_enabled():
                x_BPH = checkpoint(layer, x_BPH, use_reentrant=False, preserve_rng_state=False)
            else:
                x_BPH = layer(x_BPH)
        if self.final_layernorm is not None:
            x_BPH = self.final_layernorm(x_BPH)
        return self.linears.leave(x_BPH[:, 1:] if self.with_class else x_BPH)

    def sharded_state_dict(self, prefix: str = "", sharded_offsets: Any = (), metadata: Optional[dict[str, Any]] = None) -> dict[str, Any]:
        """Which part of which tensor this rank holds, for native checkpoints; the same names and shapes however the tower is cut."""
        return sharded_tower_state(self, prefix, self.linears.tp_rank)
