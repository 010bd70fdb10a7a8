"""uint8 tiles to normalised floats, on the compute device. Same operations in the same order as hf/tiling.normalize."""

from __future__ import annotations

from functools import lru_cache

import torch

from mindspeed_vita.hf.tiling import NORMALIZATIONS


def normalize_tiles(tiles_NCHW: torch.Tensor, normalization: str = "imagenet") -> torch.Tensor:
    """(x / 255 - mean) / std in fp32; bit for bit the processor's values on a CPU."""
    mean, std = _mean_and_std(normalization, tiles_NCHW.device)
    return (tiles_NCHW.to(torch.float32) / 255.0 - mean) / std


@lru_cache
def _mean_and_std(normalization: str, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """fp32 [3, 1, 1] each, moved to a device once: the host waits for every such copy."""
    mean, std = NORMALIZATIONS[normalization]
    return torch.tensor(mean, device=device).view(3, 1, 1), torch.tensor(std, device=device).view(3, 1, 1)
