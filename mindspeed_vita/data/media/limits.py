"""What a picture or video may cost, and how its pixels are made. Plain values: they travel to the decoder process."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass

from mindspeed_vita.choices import Resize, VideoReader
from mindspeed_vita.data.media.paths import MediaError
from mindspeed_vita.hf.choices import Pixels, Tiling
from mindspeed_vita.hf.tiling import BACKGROUND

FRAME_SECONDS = 0.25
"""What a video's deadline grows by for each frame that is taken; 4,096 frames of a film were measured to take 69 to 110 seconds."""


@dataclass(frozen=True, kw_only=True)
class DecodeSettings:
    """Caps and choices of decoding, from the recipe's data section."""

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
