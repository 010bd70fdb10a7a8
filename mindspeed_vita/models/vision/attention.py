"""Self-attention of a tower's layer, with the heads that this rank holds; heads that do not divide by the ranks are padded with zero heads.

A zero head has zero rows and columns in its weights: it gives nothing, and gets no gradient, so it stays zero.
Shapes: B tiles, P tokens of a tile, H hidden, N heads of this rank, D width of a head.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import nn

from mindspeed_vita.config import VisionConfig
from mindspeed_vita.models.vision.linears import TowerLinears


class HeadsNorm(nn.Module):
    """RMSNorm over the queries or keys of all heads together, whichever ranks hold them."""

    def __init__(self, config: VisionConfig, linears: TowerLinears) -> None:
        super().__init__()
        self.eps, self.width, self.linears = config.norm_eps, config.hidden_size, linears
        self.weight = nn.Parameter(torch.ones(linears.local_heads(config.num_heads) * config.head_dim))
        linears.share_heads(self.weight, config.num_heads)

    def forward(self, x_BPND: torch.Tensor) -> torch.Tensor:
        x = x_BPND.flatten(-2).float()
        mean_square = self.linears.total(x.square().sum(-1, keepdim=True)) / self.width
        return (self.weight * (x * torch.rsqrt(mean_square + self.eps)).to(x_BPND.dtype)).view_as(x_BPND)


class AttendTiles(Protocol):
    """Bidirectional attention inside each tile."""

    def __call__(self, q_BPND: torch.Tensor, k_BPND: torch.Tensor, v_BPND: torch.Tensor, scale: float) -> torch.Tensor: ...


class TileSelfAttention(nn.Module):
    """Bidirectional self-attention; linear_qkv's rows are ordered (heads, 3, width of a head)."""

    def __init__(self, config: VisionConfig, linears: TowerLinears, attend: AttendTiles) -> None:
        super().__init__()
        self.attend, self.scale = attend, config.head_dim**-0.5
        self.num_heads = linears.local_heads(config.num_heads)
        width = self.num_heads * linears.tp_size * config.head_dim
        self.linear_qkv = linears.column(config.hidden_size, 3 * width, config.qkv_bias)
        self.linear_proj = linears.row(width, config.hidden_size, True)
        for parameter in (*self.linear_qkv.parameters(), self.linear_proj.weight):
            linears.share_heads(parameter, config.num_heads)  # type: ignore[arg-type]
        self.q_norm: Any = HeadsNorm(config, linears) if config.qk_norm else None
        self.k_norm: Any = HeadsNorm(config, linears) if config.qk_norm else None

    def forward(self, x_BPH: torch.Tensor) -> torch.Tensor:
        q_BPND, k_BPND, v_BPND = self.linear_qkv(x_BPH).unflatten(-1, (self.num_heads, 3, -1)).unbind(-2)
        if self.q_norm is not None:
            q_BPND, k_BPND = self.q_norm(q_BPND), self.k_norm(k_BPND)
        return self.linear_proj(self.attend(q_BPND, k_BPND, v_BPND, self.scale).flatten(-2))
