"""What a picture or video may cost: in tokens of a pack (MediaLimits), and while it is decoded (DecodeSettings). Plain values."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mindspeed_vita.choices import Resize, VideoReader
from mindspeed_vita.data.media.paths import MediaError
from mindspeed_vita.hf.choices import Pixels, Tiling
from mindspeed_vita.hf.tiling import BACKGROUND, choose_grid

if TYPE_CHECKING:
    from mindspeed_vita.config.recipe import DataConfig
    from mindspeed_vita.data.media.video import VideoHeader

FRAME_SECONDS = 0.25
"""What a video's deadline grows by for each frame that is taken; 4,096 frames of a film were measured to take 69 to 110 seconds."""


@dataclass(frozen=True, kw_only=True)
class MediaLimits:
    """How pictures and videos become tiles."""

    tokens_per_tile: int
    tile_size: int
    min_tiles: int
    max_tiles: int
    max_frames: int
    max_fps: float
    sampler: str
    tiling: str = "dynamic"
    """See hf/tiling.py."""

    def grid(self, size: tuple[int, int], max_tiles: int) -> tuple[int, int]:
        """Grid of a picture of (width, height) under a tighter limit of tiles."""
        return choose_grid(*size, tile_size=self.tile_size, min_tiles=self.min_tiles, max_tiles=max_tiles, tiling=self.tiling)

    def frames(self, header: VideoHeader, max_frames: int) -> list[int]:
        """Frame numbers of a video under a tighter limit of frames."""
        return header.sample(max_frames=max_frames, max_fps=self.max_fps, sampler=self.sampler)


def media_limits(data: DataConfig, *, tokens_per_tile: int, tile_size: int) -> MediaLimits:
    """The limits of a recipe, for training and for inference.

    Args:
        data: the recipe's section.
        tokens_per_tile: language-model tokens of one tile (ModelConfig.tokens_per_tile).
        tile_size: side of a tile, in pixels (VisionConfig.tile_size).
    """
    return MediaLimits(
        tokens_per_tile=tokens_per_tile,
        tile_size=tile_size,
        min_tiles=data.min_tiles,
        max_tiles=data.max_tiles,
        max_frames=data.max_frames,
        max_fps=data.max_fps,
        sampler=data.frame_sampler,
        tiling=data.tiling,
    )


@dataclass(frozen=True, kw_only=True)
class DecodeSettings:
    """Caps and choices of decoding, from the recipe's data section. They travel to the decoder process."""

    seconds: float = 60.0
    """Hard deadline of one picture or video; then the decoder process is killed. A video has FRAME_SECONDS more for each frame."""
    max_bytes: int = 16 << 30
    """Largest file."""
    max_pixels: int = 150_000_000
    """Most pixels of a picture or of one video frame: with three bytes each, the decompressed size."""
    max_video_frames: int = 2_000_000
    """Most frames of a video file or folder, taken or not."""
    max_video_seconds: float = 6 * 3600.0
    """Longest video."""
    memory: int = 4 << 30
    """Bytes that the decoder process may allocate."""
    reader: VideoReader = "pyav"
    """What opens video files."""
    resize: Resize = "exact"
    """exact (Pillow, as published) | fast (torch, antialiased bicubic on uint8: pictures at most 2/255 off)."""
    tiling: Tiling = "dynamic"
    """How a picture is laid over its grid, see hf/tiling.py."""
    pixels: Pixels = "shown"
    """How a picture becomes RGB, see hf/pixels.py."""
    colour: tuple[int, int, int] = BACKGROUND
    """Around what is padded to a square."""
    scale_in_decoder: bool = False
    """Scale video frames with swscale while they are decoded: less memory and time, other pixels."""
    by_time: bool = False
    """Frames of a video file are asked for by their time in milliseconds, not by number (frame_sampler: time)."""

    store_cache: str = ""
    """Folder of files/store_cache.py with media of object stores; empty: there are none."""
    store_cache_bytes: int = 0
    """Most bytes of media there."""

    def deadline(self, num_frames: int) -> float:
        """Seconds for a picture (0 frames) or for so many frames of a video."""
        return self.seconds + FRAME_SECONDS * num_frames

    def check_file(self, path: str) -> None:
        """Refuses what is no regular file or too large.

        Raises:
            MediaError: why.
        """
        found = os.stat(path)
        if not stat.S_ISREG(found.st_mode):
            raise MediaError(path, "is no regular file")
        if found.st_size > self.max_bytes:
            raise MediaError(path, f"has {found.st_size:,} bytes, data.max_media_bytes allows {self.max_bytes:,}")

    def check_size(self, path: str, width: int, height: int) -> None:
        """Refuses pictures and frames with too many pixels.

        Raises:
            MediaError: why.
        """
        if width * height > self.max_pixels:
            raise MediaError(path, f"has {width}x{height} pixels, data.max_pixels allows {self.max_pixels:,}")

    def check_video(self, path: str, num_frames: int, seconds: float) -> None:
        """Refuses videos that are too long.

        Raises:
            MediaError: why.
        """
        if num_frames > self.max_video_frames:
            raise MediaError(path, f"has {num_frames:,} frames, data.max_video_frames allows {self.max_video_frames:,}")
        if seconds > self.max_video_seconds:
            raise MediaError(path, f"lasts {seconds:,.0f} seconds, data.max_video_seconds allows {self.max_video_seconds:,.0f}")
