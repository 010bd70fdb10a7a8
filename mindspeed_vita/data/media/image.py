"""Pictures: size from the header alone, and tiles."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from PIL import Image

from mindspeed_vita.data.media.paths import MediaError
from mindspeed_vita.hf.tiling import PICTURE_ERRORS, cut_tiles, frame_tile


def probe_picture(path: str) -> tuple[int, int]:
    """(width, height) from the header.

    Raises:
        MediaError: no readable header.
    """
    with _reading(path), Image.open(path) as image:
        size = image.size
    if min(size) < 1:
        raise MediaError(path, f"is a picture of {size[0]}x{size[1]} pixels")
    return size


def picture_tiles(path: str, grid: tuple[int, int], *, tile_size: int, wanted: range) -> np.ndarray:
    """Some tiles of a picture, cut by the grid chosen when it was indexed: uint8[len(wanted), 3, H, W].

    Raises:
        MediaError: the file cannot be decoded.
    """
    return cut_tiles(_decode(path), grid, tile_size=tile_size, wanted=wanted)


def frame_picture(path: str, *, tile_size: int) -> np.ndarray:
    """A frame stored as a picture: uint8[3, H, W].

    Raises:
        MediaError: the file cannot be decoded.
    """
    return frame_tile(_decode(path), tile_size=tile_size)


def _decode(path: str) -> Image.Image:
    with _reading(path), Image.open(path) as image:
        return image.convert("RGB")


@contextmanager
def _reading(path: str) -> Iterator[None]:
    try:
        yield
    except PICTURE_ERRORS as error:
        raise MediaError(path, f"cannot be read as a picture ({type(error).__name__}: {error})") from error
