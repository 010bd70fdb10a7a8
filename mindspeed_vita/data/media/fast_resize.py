"""Tiles by torch's antialiased bicubic resize on uint8: two to ten times faster than Pillow's, a little off its pixels.

Shape legend: N tiles, H and W tile_size.
"""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from mindspeed_vita.hf.tiling import BACKGROUND


def cut_tiles_fast(
    image: Image.Image,
    grid: tuple[int, int],
    *,
    tile_size: int,
    wanted: range,
    tiling: str = "dynamic",
    colour: tuple[int, int, int] = BACKGROUND,
) -> np.ndarray:
    """As hf.tiling.cut_tiles; values differ from it by at most 2 of 255, more at the edge of padding. uint8[len(wanted), 3, H, W]."""
    columns, rows = grid
    with_thumbnail = columns * rows > 1
    pixels = _pixels(image)
    tiles = torch.empty((len(wanted), 3, tile_size, tile_size), dtype=torch.uint8)
    grid_tiles = [(place, tile - with_thumbnail) for place, tile in enumerate(wanted) if tile or not with_thumbnail]
    if with_thumbnail and 0 in wanted and tiling == "dynamic":
        tiles[wanted.index(0)] = _resize(pixels, tile_size, tile_size)
    if tiling != "dynamic" and 0 in wanted:
        tiles[wanted.index(0)] = torch.from_numpy(frame_tile_fast(image, tile_size=tile_size, colour=colour))
        grid_tiles = [(place, tile) for place, tile in grid_tiles if with_thumbnail]
    if grid_tiles:
        stretched = (_padded if tiling == "anyres" else _resize)(pixels, rows * tile_size, columns * tile_size)
        for place, tile in grid_tiles:
            row, column = divmod(tile, columns)
            tiles[place] = stretched[:, row * tile_size : (row + 1) * tile_size, column * tile_size : (column + 1) * tile_size]
    return tiles.numpy()


def frame_tile_fast(image: Image.Image, *, tile_size: int, colour: tuple[int, int, int] = BACKGROUND) -> np.ndarray:
    """As hf.tiling.frame_tile, but resized before it is padded, so that the picture's edge differs too. uint8[3, H, W]."""
    width, height = image.size
    scale = tile_size / max(width, height)
    inner_width, inner_height = max(1, round(width * scale)), max(1, round(height * scale))
    left, top = (tile_size - inner_width) // 2, (tile_size - inner_height) // 2
    tile = torch.tensor(colour, dtype=torch.uint8).view(3, 1, 1).repeat(1, tile_size, tile_size)
    tile[:, top : top + inner_height, left : left + inner_width] = _resize(_pixels(image), inner_height, inner_width)
    return tile.numpy()


def _padded(pixels: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """The picture at its own aspect ratio in the middle of a black canvas, as hf.tiling does for anyres."""
    scale = min(width / pixels.shape[-1], height / pixels.shape[-2])
    inner_height, inner_width = (min(math.ceil(side * scale), most) for side, most in zip(pixels.shape[-2:], (height, width)))
    top, left = (height - inner_height) // 2, (width - inner_width) // 2
    canvas = torch.zeros(3, height, width, dtype=torch.uint8)
    canvas[:, top : top + inner_height, left : left + inner_width] = _resize(pixels, inner_height, inner_width)
    return canvas


def _pixels(image: Image.Image) -> torch.Tensor:
    """uint8[1, 3, height, width], channels last in memory: torch has a vectorised kernel for that."""
    rgb = image if image.mode == "RGB" else image.convert("RGB")
    return torch.from_numpy(np.array(rgb)).permute(2, 0, 1).unsqueeze(0)


def _resize(pixels: torch.Tensor, height: int, width: int) -> torch.Tensor:
    if pixels.shape[-2:] == (height, width):
        return pixels[0]
    return F.interpolate(pixels, size=(height, width), mode="bicubic", antialias=True, align_corners=False)[0]
