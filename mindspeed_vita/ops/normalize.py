"""uint8 tiles to normalised floats, on the compute device. Same operations in the same order as hf/tiling.normalize."""

from __future__ import annotations

import torch

from mindspeed_vita.hf.tiling import NORMALIZATIONS


def normalize_tiles(tiles_NCHW: torch.Tensor, normalization: str = "imagenet") -> torch.Tensor:
    """(x / 255 - mean) / std in fp32; bit for bit the processor's values on a CPU."""
    mean, std = (tiles_NCHW.new_tensor(value, dtype=torch.float32).view(3, 1, 1) for value in NORMALIZATIONS[normalization])
    return (tiles_NCHW.to(torch.float32) / 255.0 - mean) / std
