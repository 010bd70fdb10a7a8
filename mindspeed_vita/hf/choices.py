"""Settings that have a fixed list of values, for training and for the exported code. Each list is written here and nowhere else.

A leaf (standard library only): it is copied into exported checkpoints.
"""

from __future__ import annotations

from typing import Literal, get_args

Tiling = Literal["dynamic", "anyres", "fixed"]
"""dynamic: a picture is stretched over the grid of the closest aspect ratio. anyres: it keeps its own ratio and is padded to the grid that
holds most of its pixels. fixed: one tile, padded to a square. Frames of videos are always padded squares."""
Pixels = Literal["shown", "published"]
"""shown: turned as the EXIF tag says, transparency on white, 16-bit grey scaled to 8 bits; what has no defined range is refused.
published: as the published code did it, by Pillow's convert("RGB") alone. Pictures of 8-bit colours without a tag are the same."""
FrameSampler = Literal["uniform", "legacy", "time"]
"""uniform and legacy take frames of a file by number, time by the moment at which a frame is shown."""
Normalization = Literal["imagenet", "clip", "siglip"]
"""Whose mean and deviation of the pixels a tower was trained with."""
Norm = Literal["layer_norm", "rms_norm"]
"""The norms of a tower."""

TILINGS: tuple[Tiling, ...] = get_args(Tiling)
PIXELS: tuple[Pixels, ...] = get_args(Pixels)
SAMPLERS: tuple[FrameSampler, ...] = get_args(FrameSampler)
NORMS: tuple[Norm, ...] = get_args(Norm)
