"""Which frames of a video are taken, and how they are read: files by frame number, folders of frame pictures by natural order.

A leaf (standard library, Pillow; PyAV when a video file is opened): it is copied into exported checkpoints.
"""

from __future__ import annotations

import os
import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from typing import Any

from PIL import Image

SAMPLERS = ("uniform", "legacy")
FRAME_SUFFIXES = ("png", "jpeg", "jpg")
CONTAINERS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpeg,mpegts,flv,ogg,asf,gif"
"""FFmpeg's demuxers that may open a video file. Playlists are none of them: they name other files."""
_SEEKABLE = {"mov", "mp4", "matroska", "webm"}
"""Containers whose packets tell when their frame is shown."""


def natural_key(text: str) -> tuple[tuple[int, int, str], ...]:
    """Sort key that orders runs of digits by value: frame-2 before frame-10.

    Numbers sort before letters; the key is total, so that equal values with other leading zeros keep one order.
    """
    parts = re.split(r"(\d+)", text)
    return tuple((0, int(part), part) if part.isdecimal() else (1, 0, part) for part in parts if part)


def list_frames(folder: str) -> list[str]:
    """Paths of all .png, .jpeg and .jpg pictures below a folder, in natural order."""
    found = [os.path.join(root, name) for root, _, names in os.walk(folder) for name in names if name.endswith(FRAME_SUFFIXES)]
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

    The step is the larger of fps / max_fps and num_frames / (max_frames + 1), as in training; both samplers agree here.

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


def sample_directory_frames(num_files: int, fps: float, *, max_frames: int, max_fps: float, sampler: str = "uniform") -> list[int]:
    """Places taken from the sorted pictures of a folder of frames.

    uniform spreads them over the whole folder. legacy is the released sampler: it truncates the step first, so that of 100
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


def open_file(path: str) -> Any:
    """Opens a video file with PyAV. Nothing but the file is read: no playlist, no address, no pipe.

    Raises:
        av.error.FFmpegError or OSError: the file cannot be opened, or is none of CONTAINERS.
    """
    import av

    return av.open(path, container_options={"protocol_whitelist": "file", "format_whitelist": CONTAINERS})


def probe_file(path: str) -> tuple[int, float]:
    """(frames, average frame rate) of a video file. Nothing is decoded; containers that do not say are counted packet by packet.

    Raises:
        av.error.FFmpegError, OSError or ValueError: the file cannot be opened, is no video or has no frame rate.
    """
    with open_file(path) as container:
        if not container.streams.video:
            raise ValueError("no video stream in the file")
        stream = container.streams.video[0]
        fps = float(stream.average_rate or stream.guessed_rate or 0)
        count = stream.frames or sum(1 for packet in container.demux(stream) if packet.size)
    if not count or not fps:
        raise ValueError(f"found {count} frames at {fps} frames per second; expected both above 0")
    return count, fps


def decode_file_frames(path: str, numbers: Sequence[int], *, longest_side: int | None = None) -> Iterator[Image.Image]:
    """Decodes frames of a video file, one picture per number, counted in presentation order.

    Where the container tells every frame's time (MP4, Matroska), decoding starts at the key frame before each frame and
    leaves out frames that no other refers to; elsewhere it starts at the first frame. Both give the same pictures. A file that ends
    early repeats its last frame, so that the count always agrees with the header.

    Args:
        path: video file.
        numbers: ascending frame numbers, as sample_file_frames gives them.
        longest_side: scale frames inside the decoder so that their longer side has this many pixels; None keeps their size.

    Raises:
        av.error.FFmpegError, OSError or ValueError: the file cannot be decoded, or holds no frame at all.
    """
    with open_file(path) as container:
        times = _frame_times(container) if _SEEKABLE & set(container.format.name.split(",")) else None
        frames = _decode_by_time(container, times, numbers) if times else None
        if frames is None:
            container.seek(0)
            frames = _decode_in_order(container, numbers)
        for frame in frames:
            if longest_side is None:
                yield frame.to_image()
            else:
                scale = longest_side / max(frame.width, frame.height)
                yield frame.to_image(
                    width=max(1, round(frame.width * scale)), height=max(1, round(frame.height * scale)), interpolation="BICUBIC"
                )


def _decode_in_order(container: Any, numbers: Sequence[int]) -> Iterator[Any]:
    frame, place = None, 0
    for number, frame in enumerate(container.decode(container.streams.video[0])):
        while place < len(numbers) and numbers[place] <= number:
            yield frame
            place += 1
        if place == len(numbers):
            return
    if frame is None:
        raise ValueError("no frame could be decoded")
    for _ in numbers[place:]:
        yield frame


def _frame_times(container: Any) -> tuple[list[int], list[int], dict[int, int]] | None:
    """(presentation times of all frames, those of key frames, decoding time of each key frame); None if the packets do not say."""
    times, keys = [], {}
    for packet in container.demux(container.streams.video[0]):
        if not packet.size:
            continue
        if packet.pts is None or packet.dts is None or packet.is_discard or packet.is_corrupt:
            return None
        times.append(packet.pts)
        if packet.is_keyframe:
            keys[packet.pts] = packet.dts
    times.sort()
    trusted = times and times[0] in keys and all(one < other for one, other in zip(times, times[1:]))
    return (times, sorted(keys), keys) if trusted else None


def _decode_by_time(container: Any, known: tuple[list[int], list[int], dict[int, int]], numbers: Sequence[int]) -> Iterator[Any]:
    """Decodes each run of wanted frames that follow one key frame from that key frame on, whatever was decoded before it."""
    times, keys, decoding_time = known
    wanted = [times[min(number, len(times) - 1)] for number in numbers]
    place = 0
    while place < len(wanted):
        following = bisect_right(keys, wanted[place])
        end = bisect_left(wanted, keys[following], place) if following < len(keys) else len(wanted)
        key = keys[following - 1]
        for frame in _decode_run(container, key, min(key, decoding_time[key]), set(wanted[place:end])):
            while place < end and wanted[place] == frame.pts:
                yield frame
                place += 1
        if place < end:
            raise ValueError(f"frame {numbers[place]} cannot be decoded, the file is damaged")


def _decode_run(container: Any, key: int, seek_to: int, wanted: set[int]) -> Iterator[Any]:
    stream = container.streams.video[0]
    container.seek(seek_to, stream=stream, backward=True)
    missing, started = set(wanted), False
    for packet in container.demux(stream):
        started = started or packet.pts == key
        if not started and packet.size:
            continue
        # a frame that nobody wants and no other frame refers to costs nothing
        stream.codec_context.skip_frame = "DEFAULT" if packet.pts in wanted or not packet.size else "NONREF"
        for frame in packet.decode():
            if frame.pts in missing:
                missing.discard(frame.pts)
                yield frame
        if not missing:
            return
