"""Pictures and video frames to uint8 tiles, bit for bit as Long-VITA does: grids for pictures, padded squares for frames.

A leaf (numpy, Pillow): it is copied into exported checkpoints. Shape legend: N tiles, H and W tile_size.
"""

from __future__ import annotations

import math
import struct
import zlib
from functools import cache

import numpy as np
from PIL import Image

NORMALIZATIONS = {
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "clip": ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
    "siglip": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
}
"""(mean, standard deviation) of each colour, as the towers were trained."""


def background(normalization: str = "imagenet") -> tuple[int, int, int]:
    """Colour around a padded square: int(mean * 255)."""
    red, green, blue = (int(value * 255) for value in NORMALIZATIONS[normalization][0])
    return red, green, blue


BACKGROUND = background()
"""Colour of tiles that could not be decoded."""

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


def choose_grid(
    width: int, height: int, *, tile_size: int = 448, min_tiles: int = 1, max_tiles: int = 12, tiling: str = "dynamic"
) -> tuple[int, int]:
    """Picks the grid of a picture.

    dynamic: the closest aspect ratio; on a tie the larger grid wins if the picture has more than half its pixels. Small pictures are
    scaled up without limit: 640x480 becomes 4x3. anyres: where most of the picture's own pixels survive, and then the least padding.

    Args:
        width: of the picture, in pixels.
        height: of the picture, in pixels.
        tile_size: side of a tile, in pixels.
        min_tiles: fewest tiles, thumbnail not counted.
        max_tiles: most tiles, thumbnail not counted.
        tiling: one of choices.TILINGS; a fixed picture has one tile whatever min_tiles says.

    Returns:
        (columns, rows).

    Raises:
        ValueError: a size is not positive, or no grid has between min_tiles and max_tiles tiles.
    """
    if width < 1 or height < 1:
        raise ValueError(f"a picture of {width}x{height} pixels has no aspect ratio; expected at least 1x1")
    if not 1 <= min_tiles <= max_tiles:
        raise ValueError(f"min_tiles={min_tiles}, max_tiles={max_tiles}; expected 1 <= min_tiles <= max_tiles")
    if tiling == "fixed":
        return 1, 1
    if tiling == "anyres":
        return max(_grids(min_tiles, max_tiles), key=lambda grid: _kept_pixels(width, height, grid, tile_size))
    aspect = width / height
    best, best_gap = (1, 1), float("inf")
    for columns, rows in _grids(min_tiles, max_tiles):
        gap = abs(aspect - columns / rows)
        roomy = width * height > 0.5 * tile_size * tile_size * columns * rows
        if gap < best_gap or (gap == best_gap and roomy):
            best, best_gap = (columns, rows), gap
    return best


def is_grid_of(width: int, height: int, grid: tuple[int, int], *, tile_size: int, tiling: str) -> bool:
    """Whether choose_grid could give this grid for a picture of this size. It could not if the mirrored grid suits the picture better."""
    columns, rows = grid
    if tiling == "anyres":
        return _kept_pixels(width, height, grid, tile_size) >= _kept_pixels(width, height, (rows, columns), tile_size)
    return tiling == "fixed" or abs(width / height - columns / rows) <= abs(width / height - rows / columns)


def _kept_pixels(width: int, height: int, grid: tuple[int, int], tile_size: int) -> tuple[int, int]:
    """(the picture's own pixels that a grid can hold, minus the grid's pixels without one): what anyres maximises."""
    columns, rows = (side * tile_size for side in grid)
    scale = min(columns / width, rows / height)
    kept = min(int(width * scale) * int(height * scale), width * height)
    return kept, kept - columns * rows


def stretch(image: Image.Image, width: int, height: int) -> Image.Image:
    """Resizes an RGB picture with Pillow's bicubic filter: first the width, then the height.

    The order matters, because the values between the two passes are clipped to 0..255. A single call leaves the order to Pillow. Up to
    Pillow 12 it is the order here. From Pillow 13 on, pictures that shrink more in height than in width take the other one (Pillow's
    pull request 9549), and pixels differ by 12 of 255 and more. Two calls of one pass each give the same bytes in every Pillow.
    """
    bicubic = Image.Resampling.BICUBIC
    return image.resize((width, image.height), bicubic).resize((width, height), bicubic)


def _onto_canvas(image: Image.Image, width: int, height: int) -> Image.Image:
    """The picture at its own aspect ratio in the middle of a black canvas."""
    by_width, by_height = width / image.width, height / image.height
    if by_width < by_height:
        size = (width, min(math.ceil(image.height * by_width), height))
    else:
        size = (min(math.ceil(image.width * by_height), width), height)
    canvas = Image.new("RGB", (width, height))
    canvas.paste(stretch(image, *size), ((width - size[0]) // 2, (height - size[1]) // 2))
    return canvas


def cut_tiles(
    image: Image.Image,
    grid: tuple[int, int],
    *,
    tile_size: int = 448,
    wanted: range | None = None,
    tiling: str = "dynamic",
    colour: tuple[int, int, int] = BACKGROUND,
) -> np.ndarray:
    """Lays a picture over a grid and cuts it; the thumbnail comes first where there is more than one tile.

    Args:
        image: as pixels.to_rgb gives it; other modes are converted as Pillow does.
        grid: (columns, rows).
        tile_size: side of a tile, in pixels.
        wanted: tiles to make, all if None. Others cost nothing beyond the shared resize.
        tiling: one of choices.TILINGS.
        colour: around what anyres and fixed pad to a square: the thumbnail, or the only tile.

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
        if tiling != "dynamic" and (tile == 0 or not with_thumbnail):
            tiles[place] = frame_tile(rgb, tile_size=tile_size, colour=colour)
            continue
        if with_thumbnail and tile == 0:
            picture = stretch(rgb, tile_size, tile_size)
        else:
            if stretched is None:
                width, height = columns * tile_size, rows * tile_size
                fit = _onto_canvas if tiling == "anyres" else stretch
                stretched = fit(rgb, width, height)
            row, column = divmod(tile - with_thumbnail, columns)
            left, top = column * tile_size, row * tile_size
            picture = stretched.crop((left, top, left + tile_size, top + tile_size))
        tiles[place] = np.asarray(picture).transpose(2, 0, 1)
    return tiles


def image_tiles(
    image: Image.Image,
    *,
    tile_size: int = 448,
    min_tiles: int = 1,
    max_tiles: int = 12,
    tiling: str = "dynamic",
    colour: tuple[int, int, int] = BACKGROUND,
) -> tuple[np.ndarray, tuple[int, int]]:
    """Tiles of a picture: (uint8[N, 3, H, W] with the thumbnail first, (columns, rows))."""
    grid = choose_grid(*image.size, tile_size=tile_size, min_tiles=min_tiles, max_tiles=max_tiles, tiling=tiling)
    return cut_tiles(image, grid, tile_size=tile_size, tiling=tiling, colour=colour), grid


def frame_tile(image: Image.Image, *, tile_size: int = 448, colour: tuple[int, int, int] = BACKGROUND) -> np.ndarray:
    """Tile of a video frame: padded to a square with the colour, then resized. uint8[3, H, W]."""
    rgb = image if image.mode == "RGB" else image.convert("RGB")
    width, height = rgb.size
    if width != height:
        side = max(width, height)
        square = Image.new("RGB", (side, side), colour)
        square.paste(rgb, ((side - width) // 2, (side - height) // 2))
        rgb = square
    return np.asarray(stretch(rgb, tile_size, tile_size)).transpose(2, 0, 1)


def blank_tile(tile_size: int = 448) -> np.ndarray:
    """What stands in for a tile that could not be decoded: BACKGROUND. uint8[3, H, W]."""
    return np.broadcast_to(np.array(BACKGROUND, dtype=np.uint8)[:, None, None], (3, tile_size, tile_size))


def normalize(tiles: np.ndarray, normalization: str = "imagenet") -> np.ndarray:
    """uint8[..., 3, H, W] to float32: (x / 255 - mean) / std with values of NORMALIZATIONS, each step rounded to float32."""
    mean, std = (np.array(values, dtype=np.float32)[:, None, None] for values in NORMALIZATIONS[normalization])
    return (tiles.astype(np.float32) / np.float32(255.0) - mean) / std
