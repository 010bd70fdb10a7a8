"""Frames of a video for the processor: a file (PyAV, imported when needed), a folder of frame pictures, or frames already at hand.

This file travels with exported checkpoints. Training decodes elsewhere, with deadlines; the frames taken are the same (frames.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from .frames import directory_fps, list_frames, sample_directory_frames, sample_file_frames, sample_file_times
from .image_processing_long_vita import open_image
from .tiling import PICTURE_ERRORS
from .video_file import decode_file_frames, probe_file


def read_video(video: Any, *, max_frames: int, max_fps: float, sampler: str) -> list[Image.Image]:
    """The frames to show the model.

    Args:
        video: path of a file or of a folder of frames, a list of frames, or an array (frames, height, width, 3). Frames given
            as such are all taken.
        max_frames, max_fps, sampler: see frames.py.

    Raises:
        ValueError: no such file, nothing decodable in it, or no frames.
    """
    if isinstance(video, (str, Path)):
        path = str(video)[len("file://") :] if str(video).startswith("file://") else str(video)
        if Path(path).is_dir():
            files = list_frames(path)
            if not files:
                raise ValueError(f"video folder {path!r} holds no .png, .jpg or .jpeg pictures")
            taken = sample_directory_frames(len(files), directory_fps(path), max_frames=max_frames, max_fps=max_fps, sampler=sampler)
            return [open_image(files[place]) for place in taken]
        return _read_file(path, max_frames=max_frames, max_fps=max_fps, sampler=sampler)
    if isinstance(video, (bytes, bytearray, memoryview, dict)) or callable(getattr(video, "read", None)):
        raise ValueError(
            f"found a {type(video).__name__} as video; expected the path of a file or of a folder of frames, or the frames themselves: "
            "save the video to a file"
        )
    if not hasattr(video, "__iter__") or isinstance(video, Image.Image):
        raise ValueError(f"found a {type(video).__name__} as video; expected a path, a list of frames or an array of frames")
    frames: Sequence[Any] = list(video)
    if not frames:
        raise ValueError("found a video without frames; expected at least one")
    return [open_image(np.asarray(frame) if hasattr(frame, "numpy") else frame) for frame in frames]


def _read_file(path: str, *, max_frames: int, max_fps: float, sampler: str) -> list[Image.Image]:
    if not Path(path).is_file():
        raise ValueError(f"video {path!r}: no such file or folder")
    try:
        import av
    except ImportError as error:
        raise ValueError(f"video {path!r}: reading video files needs PyAV; pip install av, or give a folder of frames") from error
    try:
        header = probe_file(path)
        if sampler == "time":
            moments = sample_file_times(header.seconds, max_frames=max_frames, max_fps=max_fps)
            return list(decode_file_frames(path, moments, by_time=True))
        wanted = sample_file_frames(header.num_frames, header.fps, max_frames=max_frames, max_fps=max_fps, sampler=sampler)
        return list(decode_file_frames(path, wanted))
    except (av.error.FFmpegError, *PICTURE_ERRORS) as error:
        raise ValueError(f"video {path!r} cannot be read: {error}") from error
