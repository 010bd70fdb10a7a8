"""Pictures: size from the header alone, and tiles."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO

import numpy as np
from PIL import Image

from mindspeed_vita.data.media.limits import DecodeSettings
from mindspeed_vita.data.media.members import read_member
from mindspeed_vita.data.media.paths import MediaError, split_member, what_failed
from mindspeed_vita.hf.pixels import open_picture, shown_size, to_rgb
from mindspeed_vita.hf.tiling import PICTURE_ERRORS, cut_tiles, frame_tile, is_grid_of

_DEFAULTS = DecodeSettings()


def probe_picture(path: str, settings: DecodeSettings = _DEFAULTS) -> tuple[int, int]:
    """(width, height) from the header.

    Raises:
        MediaError: no readable header, or one that announces too many pixels.
    """
    with _reading(path), open_picture(_source(path, settings)) as image:
        size = shown_size(image, settings.pixels)
    if min(size) < 1:
        raise MediaError(path, f"is a picture of {size[0]}x{size[1]} pixels")
    settings.check_size(path, *size)
    return size


def picture_tiles(
    path: str, grid: tuple[int, int], *, tile_size: int, wanted: range, settings: DecodeSettings = _DEFAULTS
) -> np.ndarray:
    """Some tiles of a picture, cut by the grid chosen when it was indexed: uint8[len(wanted), 3, H, W].

    Raises:
        MediaError: the file cannot be decoded.
    """
    image, turned = _decode(path, settings)
    if turned and not is_grid_of(*image.size, grid, tile_size=tile_size, tiling=settings.tiling):
        reason = "its EXIF tag turns it, and its index was made before such tags counted; remove the index (data.index): it is made anew"
        raise MediaError(path, reason)
    if settings.resize == "fast":
        from mindspeed_vita.data.media.fast_resize import cut_tiles_fast

        return cut_tiles_fast(image, grid, tile_size=tile_size, wanted=wanted, tiling=settings.tiling, colour=settings.colour)
    return cut_tiles(image, grid, tile_size=tile_size, wanted=wanted, tiling=settings.tiling, colour=settings.colour)


def frame_picture(path: str, *, tile_size: int, settings: DecodeSettings = _DEFAULTS) -> np.ndarray:
    """A frame stored as a picture: uint8[3, H, W].

    Raises:
        MediaError: the file cannot be decoded.
    """
    return resize_frame(_decode(path, settings)[0], tile_size=tile_size, settings=settings)


def resize_frame(image: Image.Image, *, tile_size: int, settings: DecodeSettings = _DEFAULTS) -> np.ndarray:
    """Tile of a decoded video frame: uint8[3, H, W]."""
    if settings.resize == "fast":
        from mindspeed_vita.data.media.fast_resize import frame_tile_fast

        return frame_tile_fast(image, tile_size=tile_size, colour=settings.colour)
    return frame_tile(image, tile_size=tile_size, colour=settings.colour)


def _decode(path: str, settings: DecodeSettings) -> tuple[Image.Image, bool]:
    """The picture in RGB, and whether its sides were swapped."""
    with _reading(path), open_picture(_source(path, settings)) as image:
        size = image.size
        settings.check_size(path, *size)
        rgb = to_rgb(image, settings.pixels)
        return rgb, rgb.size != size


def _source(path: str, settings: DecodeSettings) -> str | BinaryIO:
    """What Pillow opens: the file, or the bytes that a reference into a container names."""
    member = split_member(path)
    if member is not None:
        return read_member(*member, settings.max_bytes)
    settings.check_file(path)
    return path


@contextmanager
def _reading(path: str) -> Iterator[None]:
    try:
        yield
    except PICTURE_ERRORS as error:
        raise MediaError(path, f"cannot be read as a picture ({what_failed(error)})") from error
