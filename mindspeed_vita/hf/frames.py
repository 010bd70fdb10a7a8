"""Which frames of a video are taken, and the order of a folder's frame pictures. video_file.py reads files.

A leaf (standard library only): it is copied into exported checkpoints.
"""

from __future__ import annotations

import math
import os
import re

from .choices import SAMPLERS

FRAME_SUFFIXES = (".png", ".jpeg", ".jpg")
_CLUTTER = ("__MACOSX", "@eaDir", "Thumbs.db", "desktop.ini")


def natural_key(text: str) -> tuple[tuple[int, int, str], ...]:
    """Sort key that orders runs of digits by value: frame-2 before frame-10.

    Numbers sort before letters; the key is total, so that equal values with other leading zeros keep one order.
    """
    parts = re.split(r"(\d+)", text)
    return tuple((0, int(part), part) if part.isdecimal() else (1, 0, part) for part in parts if part)


def is_clutter(path: str) -> bool:
    """Whether a relative path is no content: hidden files and folders (._photo.jpg, .ipynb_checkpoints), and what systems leave behind."""
    parts = path.replace(os.sep, "/").split("/")
    return any(part in _CLUTTER or (part.startswith(".") and part not in (".", "..")) for part in parts)


def list_frames(folder: str) -> list[str]:
    """Paths of all .png, .jpeg and .jpg pictures below a folder, in natural order. Upper case counts too, clutter does not."""
    found = []
    for root, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not is_clutter(name)]
        found += [os.path.join(root, name) for name in names if name.lower().endswith(FRAME_SUFFIXES) and not is_clutter(name)]
    return sorted(found, key=natural_key)


def directory_fps(folder: str) -> float:
    """Frames per second that a folder of frames was cut at: 2 for ShareGPTVideo's, otherwise 1."""
    return 2.0 if "ShareGPTVideo" in folder else 1.0


def _check(count: int, fps: float, max_frames: int, max_fps: float, sampler: str) -> None:
    if sampler not in SAMPLERS:
        raise ValueError(f"frame sampler {sampler!r} is unknown; expected one of {', '.join(SAMPLERS)}")
    if count < 1:
        raise ValueError("found a video without frames; expected at least one")
    if not fps > 0 or not max_fps > 0 or max_frames < 1:
        raise ValueError(f"fps={fps}, max_fps={max_fps}, max_frames={max_frames}; expected positive numbers")


def sample_file_frames(num_frames: int, fps: float, *, max_frames: int, max_fps: float, sampler: str = "uniform") -> list[int]:
    """Frame numbers taken from a video file, evenly spaced from frame 0.

    The step is the larger of fps / max_fps and num_frames / (max_frames + 1), as in training; uniform and legacy agree here.

    Args:
        num_frames: frames in the file.
        fps: average frame rate of the file.
        max_frames: most frames to take.
        max_fps: most frames to take per second.
        sampler: one of SAMPLERS.

    Raises:
        ValueError: a number is not positive or the sampler is unknown.
    """
    _check(num_frames, fps, max_frames, max_fps, sampler)
    step = max(fps / max_fps, num_frames / (max_frames + 1))
    numbers = (int(place * step) for place in range(max_frames))
    return [number for number in numbers if number < num_frames]


def sample_file_times(seconds: float, *, max_frames: int, max_fps: float) -> list[int]:
    """Moments taken from a video file, in milliseconds from its first frame, evenly spaced from 0.

    The step is the larger of 1 / max_fps and seconds / (max_frames + 1): sample_file_frames in units of time. Where frames are not
    evenly spaced in time, this covers the film evenly and frame numbers do not.

    Args:
        seconds: from the first frame to the end of the last.
        max_frames: most frames to take.
        max_fps: most frames to take per second.

    Raises:
        ValueError: a number is not positive.
    """
    if not (seconds > 0 and max_fps > 0 and max_frames > 0):
        raise ValueError(f"seconds={seconds}, max_fps={max_fps}, max_frames={max_frames}; expected positive numbers")
    step = max(1.0 / max_fps, seconds / (max_frames + 1))
    # a whole number of milliseconds, rounded up: a frame that begins at the very moment is the one that is shown
    return [math.ceil(1000 * place * step - 1e-6) for place in range(max_frames) if place * step < seconds]


def sample_directory_frames(num_files: int, fps: float, *, max_frames: int, max_fps: float, sampler: str = "uniform") -> list[int]:
    """Places taken from the sorted pictures of a folder of frames.

    uniform and time spread them over the whole folder. legacy is the released sampler: it truncates the step first, so that of 100
    pictures with max_frames=64 it takes only the first 64, and it repeats pictures where max_fps exceeds fps.

    Args:
        num_files: pictures in the folder.
        fps: frame rate they were cut at (directory_fps).
        max_frames: most frames to take.
        max_fps: most frames to take per second.
        sampler: one of SAMPLERS.

    Raises:
        ValueError: a number is not positive or the sampler is unknown.
    """
    _check(num_files, fps, max_frames, max_fps, sampler)
    wanted = max(1, int(min(num_files / fps * max_fps, max_frames)))
    if sampler == "legacy":
        return [num_files // wanted * place for place in range(wanted)]
    wanted = min(wanted, num_files)
    return [num_files * place // wanted for place in range(wanted)]
