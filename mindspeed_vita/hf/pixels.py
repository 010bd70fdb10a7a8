"""From a picture file to the RGB picture that a person sees: the one rule of training, of the exported processor and of generation.

A leaf (numpy, Pillow, tiling.py): it is copied into exported checkpoints.
"""

from __future__ import annotations

import os
from typing import Any, Optional

import numpy as np
from PIL import Image, UnidentifiedImageError, features

from .tiling import PICTURE_ERRORS

PICTURE_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF", "JPEG2000")
"""Pillow's plugins that may open a picture, whatever it is called, where this Pillow has them. Of the others, EPS starts Ghostscript."""

_ORIENTATION = 0x0112
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What brings a picture with this value of EXIF's Orientation upright."""
_SIDEWAYS = (5, 6, 7, 8)
_PNG_METADATA = ("exif", "Raw profile type exif", "XML:com.adobe.xmp")
_BITS, _PHOTOMETRIC, _WHITE_IS_ZERO = 258, 262, 0
"""Tags of TIFF, and the value of the second one by which 0 is white."""


def open_picture(source: Any) -> Image.Image:
    """Opens a picture by its content; only its header is read.

    Args:
        source: path, or a binary file object that can seek.

    Raises:
        ValueError: a format that is known and not supported here; names it.
        PICTURE_ERRORS (tiling.py): no picture, or a damaged one.
    """
    Image.init()
    try:
        return Image.open(source, formats=[name for name in PICTURE_FORMATS if name in Image.OPEN])
    except UnidentifiedImageError:
        name = _unsupported(_head(source))
        if not name:
            raise
        raise ValueError(f"it is {name}: format not supported by Pillow {Image.__version__} here; save it as PNG or JPEG") from None


def _head(source: Any) -> bytes:
    if isinstance(source, (str, bytes, os.PathLike)):
        with open(source, "rb") as file:
            return file.read(16)
    source.seek(0)
    head: bytes = source.read(16)
    return head


def _unsupported(head: bytes) -> str:
    """Name of a common format that cannot be read here; empty for any other."""
    if head[4:8] == b"ftyp" and head[8:12] in (b"heic", b"heix", b"hevc", b"hevx", b"mif1", b"msf1"):
        return "HEIC"
    if head[:2] == b"\xff\x0a" or head[4:8] == b"JXL ":
        return "JPEG XL"
    if head[4:8] == b"ftyp" and head[8:12] in (b"avif", b"avis"):
        return "" if "AVIF" in Image.OPEN and features.check("avif") else "AVIF"
    if head[4:8] == b"jP  " or head[:4] == b"\xff\x4f\xff\x51":
        return "" if features.check("jpg_2000") else "JPEG 2000"
    return ""


def shown_size(image: Image.Image, pixels: str = "shown") -> tuple[int, int]:
    """(width, height) that to_rgb() will give, from the header alone."""
    width, height = image.size
    return (height, width) if pixels == "shown" and _orientation(image) in _SIDEWAYS else (width, height)


def to_rgb(image: Image.Image, pixels: str = "shown") -> Image.Image:
    """The picture as 8-bit RGB.

    Args:
        image: opened by open_picture, or any other PIL picture.
        pixels: one of choices.PIXELS.

    Raises:
        ValueError: its values have no defined range (float, 32-bit), or its tag came after its pixels.
        PICTURE_ERRORS (tiling.py): the file is damaged.
    """
    if pixels == "published":
        return image if image.mode == "RGB" else image.convert("RGB")
    orientation = _orientation(image)
    image.load()
    if _orientation(image) != orientation:
        raise ValueError("its orientation tag stands after its pixels, where the header does not tell it; save the picture again")
    rgb = _on_white(_eight_bits(image))
    return rgb.transpose(_TURNS[orientation]) if orientation in _TURNS else rgb


def _orientation(image: Image.Image) -> Optional[int]:
    """EXIF's Orientation, without reading pixels. Of a TIFF Pillow has turned the pixels, and the size, already.

    A block of EXIF that cannot be read says nothing: viewers show such a picture as it lies.
    """
    if image.format == "TIFF" or (image.format == "PNG" and not any(name in image.info for name in _PNG_METADATA)):
        return None
    try:
        value = image.getexif().get(_ORIENTATION)
    except PICTURE_ERRORS:
        return None
    return value if isinstance(value, int) else None


def _eight_bits(image: Image.Image) -> Image.Image:
    """Grey of 16 bits scaled to 8; all else as it is."""
    if not image.mode.startswith(("I", "F")):
        return image
    highest, inverted = 65535, False
    if image.format == "TIFF" and image.mode.startswith("I;16"):
        tags: Any = getattr(image, "tag_v2", {})
        highest, inverted = 2 ** int(tags.get(_BITS, (16,))[0]) - 1, tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO
    elif not image.mode.startswith("I;16") and not (image.mode == "I" and image.format in ("PNG", "PPM")):  # of 16 bits by their standards
        kind = "float" if image.mode.startswith("F") else "32-bit or signed"
        raise ValueError(f"its values are {kind} (mode {image.mode}), which have no defined black and white; save it with 8 or 16 bits")
    values = np.asarray(image).astype(np.int64)
    grey = (values.clip(0, highest) * 255 + highest // 2) // highest
    grey = 255 - grey if inverted else grey
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        grey[values == transparent] = 255
    return Image.fromarray(grey.astype(np.uint8))


def _on_white(image: Image.Image) -> Image.Image:
    transparent = image.info.get("transparency")
    if image.mode == "RGB" and isinstance(transparent, tuple) and max(transparent) > 255:
        raise ValueError("one of its 16-bit colours is transparent, which Pillow cannot tell from others; save it as RGBA")
    with_palette = image.mode == "P" and image.palette is not None and image.palette.mode.endswith("A")
    if transparent is None and not with_palette and image.mode not in ("RGBA", "RGBa", "LA", "La", "PA"):
        return image if image.mode == "RGB" else image.convert("RGB")
    rgba = (image.convert("LA") if image.mode == "La" else image).convert("RGBA")
    if rgba.getchannel("A").getextrema() == (255, 255):
        return rgba.convert("RGB")
    white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
    white.alpha_composite(rgba)
    return white.convert("RGB")
