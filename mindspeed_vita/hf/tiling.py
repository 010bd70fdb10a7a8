"""Pictures and video frames to uint8 tiles, bit for bit as Long-VITA was trained: stretched grids for pictures, padded squares for frames.

A leaf (numpy, Pillow): it is copied into exported checkpoints. Shape legend: N tiles, H and W tile_size.
"""

from __future__ import annotations

import struct
import zlib
from functools import cache

import numpy as np
from PIL import Image

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

BACKGROUND = (123, 116, 103)
"""Colour around a padded video frame: int(mean * 255)."""

PICTURE_ERRORS = (
    *(ArithmeticError, AssertionError, AttributeError, BufferError, EOFError, ImportError, LookupError, MemoryError, OSError),
    *(RuntimeError, SyntaxError, TypeError, ValueError, struct.error, zlib.error, Image.DecompressionBombError),
)
"""What Pillow may raise for a damaged file: its plugins trust what they parse. Only Pillow's own reading stands under it."""


@cache
def _grids(min_tiles: int, max_tiles: int) -> tuple[tuple[int, int], ...]:
    """(columns, rows) with min_tiles to max_tiles tiles, in ascending number of tiles, by columns where that is equal.

    The second order never matters with min_tiles=1: no picture is equally close to two grids of equal area.
    """
    pairs = [(c, r) for c in range(1, max_tiles + 1) for r in range(1, max_tiles // c + 1) if c * r >= min_tiles]
    return tuple(sorted(pairs, key=lambda pair: pair[0] * pair[1]))


def choose_grid(width: int, height: int, *, tile_size: int = 448, min_tiles: int = 1, max_tiles: int = 12) -> tuple[int, int]:
    """Picks the grid whose aspect ratio is closest to the picture's.

    On a tie the larger grid wins if the picture has more than half its pixels. Small pictures are scaled up without limit:
    640x480 becomes 4x3.

    Args:
        width: of the picture, in pixels.
        height: of the picture, in pixels.
        tile_size: side of a tile, in pixels.
        min_tiles: fewest tiles, thumbnail not counted.
        max_tiles: most tiles, thumbnail not counted.

    Returns:
        (columns, rows).

    Raises:
        ValueError: a size is not positive, or no grid has between min_tiles and max_tiles tiles.
    """
    if width < 1 or height < 1:
        raise ValueError(f"a picture of {width}x{height} pixels has no aspect ratio; expected at least 1x1")
    if not 1 <= min_tiles <= max_tiles:
        raise ValueError(f"min_tiles={min_tiles}, max_tiles={max_tiles}; expected 1 <= min_tiles <= max_tiles")
    aspect = width / height
    best, best_gap = (1, 1), float("inf")
    for columns, rows in _grids(min_tiles, max_tiles):
        gap = abs(aspect - columns / rows)
        roomy = width * height > 0.5 * tile_size * tile_size * columns * rows
        if gap < best_gap or (gap == best_gap and roomy):
            best, best_gap = (columns, rows), gap
    return best


def cut_tiles(image: Image.Image, grid: tuple[int, int], *, tile_size: int = 448, wanted: range | None = None) -> np.ndarray:
    """Stretches a picture over a grid and cuts it; the thumbnail comes first where there is more than one tile.

    Args:
        image: any mode; converted to RGB. Orientation tags are ignored, as in training.
        grid: (columns, rows).
        tile_size: side of a tile, in pixels.
        wanted: tiles to make, all if None. Others cost nothing beyond the shared resize.

    Returns:
        uint8[len(wanted), 3, H, W].
    """
    columns, rows = grid
    with_thumbnail = columns * rows > 1
    count = columns * rows + with_thumbnail
    wanted = range(count) if wanted is None else wanted
    assert 0 <= wanted.start <= wanted.stop <= count, (wanted, count)
    rgb = image if image.mode == "RGB" else image.convert("RGB")
    tiles = np.empty((len(wanted), 3, tile_size, tile_size), dtype=np.uint8)
    stretched = None
    for place, tile in enumerate(wanted):
        if with_thumbnail and tile == 0:
            picture = rgb.resize((tile_size, tile_size), Image.Resampling.BICUBIC)
        else:
            if stretched is None:
                stretched = rgb.resize((columns * tile_size, rows * tile_size), Image.Resampling.BICUBIC)
            row, column = divmod(tile - with_thumbnail, columns)
            left, top = column * tile_size, row * tile_size
            picture = stretched.crop((left, top, left + tile_size, top + tile_size))
        tiles[place] = np.asarray(picture).transpose(2, 0, 1)
    return tiles


def image_tiles(image: Image.Image, *, tile_size: int = 448, min_tiles: int = 1, max_tiles: int = 12) -> tuple[np.ndarray, tuple[int, int]]:
    """Tiles of a picture: (uint8[N, 3, H, W] with the thumbnail first, (columns, rows))."""
    grid = choose_grid(*image.size, tile_size=tile_size, min_tiles=min_tiles, max_tiles=max_tiles)
    return cut_tiles(image, grid, tile_size=tile_size), grid


def frame_tile(image: Image.Image, *, tile_size: int = 448) -> np.ndarray:
    """Tile of a video frame: padded to a square with BACKGROUND, then resized. uint8[3, H, W]."""
    rgb = image if image.mode == "RGB" else image.convert("RGB")
    width, height = rgb.size
    if width != height:
        side = max(width, height)
        square = Image.new("RGB", (side, side), BACKGROUND)
        square.paste(rgb, ((side - width) // 2, (side - height) // 2))
        rgb = square
    return np.asarray(rgb.resize((tile_size, tile_size), Image.Resampling.BICUBIC)).transpose(2, 0, 1)


def blank_tile(tile_size: int = 448) -> np.ndarray:
    """What stands in for a tile that could not be decoded: BACKGROUND. uint8[3, H, W]."""
    return np.broadcast_to(np.array(BACKGROUND, dtype=np.uint8)[:, None, None], (3, tile_size, tile_size))


def normalize(tiles: np.ndarray) -> np.ndarray:
    """uint8[..., 3, H, W] to float32: (x / 255 - mean) / std with ImageNet values, each step rounded to float32."""
    mean = np.array(IMAGENET_MEAN, dtype=np.float32)[:, None, None]
    std = np.array(IMAGENET_STD, dtype=np.float32)[:, None, None]
    return (tiles.astype(np.float32) / np.float32(255.0) - mean) / std
