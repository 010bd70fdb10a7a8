"""Pictures to normalised tiles, for transformers. The cutting itself is in tiling.py, which training uses too.

This file travels with exported checkpoints. It needs no torchvision.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Iterator
from http.client import HTTPException
from pathlib import Path
from typing import Any, Optional
from urllib.request import urlopen

import numpy as np
from PIL import Image
from transformers.image_processing_utils import BaseImageProcessor, BatchFeature

from .choices import PIXELS, TILINGS
from .pixels import open_picture, to_rgb
from .tiling import NORMALIZATIONS, PICTURE_ERRORS, background, frame_tile, image_tiles, normalize

URL_TIMEOUT_SECONDS = 30.0
MAX_URL_BYTES = 64 * 2**20
_EXPECTED = "expected a path, a URL, base64 text, bytes, a file object, a PIL image or an array"


class LongVitaImageProcessor(BaseImageProcessor):
    """Tiles of pictures and of video frames.

    Args:
        tile_size: side of a tile, pixels.
        min_tiles, max_tiles: fewest and most tiles a picture is cut into, thumbnail not counted.
        tiling: "dynamic", "anyres" or "fixed", see tiling.py.
        normalization: "imagenet", "clip" or "siglip": what the tower was trained on.
        pixels: "shown" or "published", see pixels.py.
    """

    model_input_names = ["images"]

    def __init__(
        self,
        tile_size: int = 448,
        min_tiles: int = 1,
        max_tiles: int = 12,
        tiling: str = "dynamic",
        normalization: str = "imagenet",
        pixels: str = "shown",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        choices = (("tiling", tiling, TILINGS), ("normalization", normalization, tuple(NORMALIZATIONS)), ("pixels", pixels, PIXELS))
        for name, value, known in choices:
            if value not in known:
                raise ValueError(f"{name} is {value!r}; expected one of {', '.join(known)}")
        self.tile_size = tile_size
        self.min_tiles = min_tiles
        self.max_tiles = max_tiles
        self.tiling = tiling
        self.normalization = normalization
        self.pixels = pixels

    def tile_image(
        self, image: Any, *, min_tiles: Optional[int] = None, max_tiles: Optional[int] = None
    ) -> tuple[np.ndarray, tuple[int, int]]:
        """One picture -> (float32 [N, 3, H, W] thumbnail first, (columns, rows)); limits that are None are the processor's own."""
        tiles, grid = image_tiles(
            self._rgb(image),
            tile_size=self.tile_size,
            min_tiles=self.min_tiles if min_tiles is None else min_tiles,
            max_tiles=self.max_tiles if max_tiles is None else max_tiles,
            tiling=self.tiling,
            colour=background(self.normalization),
        )
        return normalize(tiles, self.normalization), grid

    def tile_frames(self, frames: Iterable[Image.Image]) -> np.ndarray:
        """Frames of a video -> float32 [N, 3, H, W]."""
        colour = background(self.normalization)
        tiles = [frame_tile(self._rgb(frame), tile_size=self.tile_size, colour=colour) for frame in frames]
        return normalize(np.stack(tiles), self.normalization)

    def _rgb(self, source: Any) -> Image.Image:
        image = open_image(source)
        try:
            return to_rgb(image, self.pixels)
        except PICTURE_ERRORS as error:
            name = str(source)[:200] if isinstance(source, (str, Path)) else f"of {image.width}x{image.height} pixels"
            raise ValueError(f"picture {name!r} cannot be read: {error}") from error

    def preprocess(self, images: Any, return_tensors: Optional[str] = None, **kwargs: Any) -> BatchFeature:
        """Pictures to tiles.

        Args:
            images: one picture, a list, or lists of lists, which are laid flat. open_image() says what a picture may be.

        Returns:
            "images" [N, 3, H, W], "num_tiles" and "grids", one per picture.

        Raises:
            ValueError: no picture, or one that cannot be read.
        """
        pictures = list(_flat(images))
        if not pictures:
            raise ValueError("found no pictures in `images`; expected at least one")
        tiled = [self.tile_image(picture) for picture in pictures]
        data = {
            "images": np.concatenate([tiles for tiles, _ in tiled]),
            "num_tiles": [len(tiles) for tiles, _ in tiled],
            "grids": [list(grid) for _, grid in tiled],
        }
        return BatchFeature(data, tensor_type=return_tensors)


def _flat(images: Any) -> Iterator[Any]:
    if isinstance(images, (list, tuple)):
        for item in images:
            yield from _flat(item)
    elif images is not None:
        yield images


def open_image(source: Any) -> Image.Image:
    """A picture from a PIL image, a path, an http(s) URL, base64 text, the bytes of a picture file, a file object opened in binary mode,
    or an array of bytes (H, W, 3) or (3, H, W).

    It is neither turned nor converted here: to_rgb() does both, as in training.

    Raises:
        ValueError: none of these, or not readable.
    """
    if isinstance(source, Image.Image):
        return source
    if isinstance(source, (str, Path)):
        return _open_text(str(source))
    if isinstance(source, (bytes, bytearray, memoryview)):
        return _decode(bytes(source), f"of {len(source)} bytes")
    if callable(getattr(source, "read", None)):
        return _open_file(source)
    if isinstance(source, (dict, set)) or source is None:
        raise ValueError(f"found a {type(source).__name__} as picture; {_EXPECTED}")
    array = np.asarray(source)
    if array.dtype != np.uint8 or array.ndim != 3 or 3 not in (array.shape[0], array.shape[-1]):
        raise ValueError(f"found an array of {array.dtype} {array.shape} as picture; expected uint8 (height, width, 3)")
    return Image.fromarray(array if array.shape[-1] == 3 else array.transpose(1, 2, 0))


def _open_file(source: Any) -> Image.Image:
    name = str(getattr(source, "name", "file object"))
    content = source.read()
    if not isinstance(content, bytes):
        raise ValueError(f"picture {name[:200]!r}: the file object gives {type(content).__name__}; open the file in binary mode ('rb')")
    if not content:
        raise ValueError(f"picture {name[:200]!r}: the file object gives nothing more to read; rewind it by seek(0)")
    return _decode(content, name)


def _open_text(source: str) -> Image.Image:
    if source.startswith(("http://", "https://")):
        return _decode(_download(source), source)
    if source.startswith("data:"):
        return _decode(_from_base64(source.partition(",")[2]), "data URL")
    path = source[len("file://") :] if source.startswith("file://") else source
    if _is_file(path):
        return _decode(Path(path).read_bytes(), path)
    content = _from_base64(source)
    if len(content) < 64:
        raise ValueError(f"picture {source[:200]!r}: no such file; give a path, a URL, base64 text or a PIL image")
    return _decode(content, "base64 text")


def _is_file(path: str) -> bool:
    try:
        return Path(path).is_file()
    except (OSError, ValueError):  # base64 text is too long for a name, or holds what a name cannot
        return False


def _from_base64(text: str) -> bytes:
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except ValueError:
        return b""


def _download(url: str) -> bytes:
    try:
        with urlopen(url, timeout=URL_TIMEOUT_SECONDS) as response:
            content = response.read(MAX_URL_BYTES + 1)
    except (OSError, HTTPException) as error:
        raise ValueError(f"picture {url[:200]!r} cannot be loaded: {error}") from error
    if len(content) > MAX_URL_BYTES:
        raise ValueError(f"picture {url[:200]!r} has more than {MAX_URL_BYTES // 2**20} MiB; save a smaller copy and give its path")
    return content


def _decode(content: bytes, name: str) -> Image.Image:
    try:
        image = open_picture(io.BytesIO(content))
        image.load()
    except PICTURE_ERRORS as error:
        raise ValueError(f"picture {name[:200]!r} cannot be read: {error}") from error
    return image


Long_vitaImageProcessor = LongVitaImageProcessor
