"""Videos: frame count and rate from headers alone, and frames. A video is a file or a folder of frame pictures."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from mindspeed_vita.data.media.file_part import FilePart
from mindspeed_vita.data.media.image import frame_picture, probe_picture, resize_frame
from mindspeed_vita.data.media.limits import DecodeSettings
from mindspeed_vita.data.media.members import tar_part
from mindspeed_vita.data.media.paths import MediaError, resolve, split_frames, split_member, what_failed
from mindspeed_vita.data.media.readers import read_frames
from mindspeed_vita.hf.frames import directory_fps, list_frames, sample_directory_frames, sample_file_frames, sample_file_times
from mindspeed_vita.hf.tiling import PICTURE_ERRORS
from mindspeed_vita.hf.video_file import probe_file, spacing_is_irregular

_DEFAULTS = DecodeSettings()


@dataclass(frozen=True)
class VideoHeader:
    """What the frames to take follow from."""

    is_folder: bool
    num_frames: int
    fps: float
    milliseconds: int = 0
    """Length of a file whose frames are not spaced evenly; 0: num_frames / fps."""

    @property
    def seconds(self) -> float:
        """From the first frame to the end of the last."""
        return self.milliseconds / 1000 if self.milliseconds else self.num_frames / self.fps

    def sample(self, *, max_frames: int, max_fps: float, sampler: str) -> list[int]:
        """Frame numbers to take, ascending; at most max_frames. Of a file with the sampler time: milliseconds."""
        if sampler == "time" and not self.is_folder:
            return sample_file_times(self.seconds, max_frames=max_frames, max_fps=max_fps)
        choose = sample_directory_frames if self.is_folder else sample_file_frames
        return choose(self.num_frames, self.fps, max_frames=max_frames, max_fps=max_fps, sampler=sampler)


def probe_video(path: str, root: str | None = None, settings: DecodeSettings = _DEFAULTS) -> VideoHeader:
    """Header of a video file, or the number of pictures in a folder.

    Args:
        path: as written in the sample, relative to root or absolute: the rate of a folder follows from its name, not from
            where a symbolic link leads.
        root: folder that neither the video nor its first frame may lie outside of; None sets no bounds.
        settings: caps.

    Raises:
        MediaError: nothing usable there, or more than the caps allow.
    """
    written = path if root is None or split_frames(path) else os.path.join(root, path)
    path = path if root is None else resolve(path, root)
    if is_frames(path):
        files = _frames(path)
        if not files:
            raise MediaError(path, "folder without .png, .jpg or .jpeg frames")
        probe_picture(files[0] if root is None else resolve(files[0], root), settings)
        header = VideoHeader(True, len(files), directory_fps(written))
    else:
        film = _film(path, settings)
        with _reading(path, "read as a video"):
            found = probe_file(film)
        even = abs(found.seconds - found.num_frames / found.fps) <= max(0.02 * found.seconds, 1.5 / found.fps)
        header = VideoHeader(False, found.num_frames, found.fps, 0 if even else max(round(1000 * found.seconds), 1))
    settings.check_video(path, header.num_frames, header.seconds)
    return header


def is_frames(path: str) -> bool:
    """Whether a video is a folder, or a list, of frames."""
    return split_frames(path) is not None or os.path.isdir(path)


def _frames(path: str) -> list[str]:
    return split_frames(path) or list_frames(path)


def is_uneven(path: str, root: str, settings: DecodeSettings = _DEFAULTS) -> bool:
    """Whether the frames of a video file are spaced unevenly in time; a folder's are not.

    Raises:
        MediaError: nothing usable there.
    """
    real = resolve(path, root)
    if is_frames(real):
        return False
    film = _film(real, settings)
    with _reading(real, "read as a video"):
        return spacing_is_irregular(film)


def video_tiles(
    path: str, header: VideoHeader, numbers: list[int], *, tile_size: int, root: str, settings: DecodeSettings = _DEFAULTS
) -> np.ndarray:
    """Tiles of some frames: uint8[len(numbers), 3, H, W]. See iter_video_tiles."""
    tiles = np.empty((len(numbers), 3, tile_size, tile_size), dtype=np.uint8)
    for place, tile in enumerate(iter_video_tiles(path, header, numbers, tile_size=tile_size, root=root, settings=settings)):
        tiles[place] = tile
    return tiles


def iter_video_tiles(
    path: str, header: VideoHeader, numbers: list[int], *, tile_size: int, root: str, settings: DecodeSettings = _DEFAULTS
) -> Iterator[np.ndarray]:
    """Tiles of some frames, one at a time: uint8[3, H, W] each. A file that ends early repeats its last frame.

    Raises:
        MediaError: the video cannot be decoded, changed since it was indexed, or exceeds a cap.
    """
    if header.is_folder:
        files = _frames(path)
        if len(files) != header.num_frames:
            raise MediaError(path, f"holds {len(files)} frames, had {header.num_frames} when it was indexed")
        for number in numbers:
            yield frame_picture(resolve(files[number], root), tile_size=tile_size, settings=settings)
        return
    film = _film(path, settings)
    side = tile_size if settings.scale_in_decoder else None
    images = read_frames(film, numbers, reader=settings.reader, longest_side=side, by_time=settings.by_time)
    for _ in numbers:
        with _reading(path, "decoded"):
            image = next(images)
        settings.check_size(path, *image.size)
        yield resize_frame(image, tile_size=tile_size, settings=settings)


def _film(path: str, settings: DecodeSettings) -> str | FilePart:
    """What a reader opens: the file, or the part of a shard that a reference names."""
    member = split_member(path)
    if member is not None:
        return tar_part(*member, settings.max_bytes)
    settings.check_file(path)
    return path


@contextmanager
def _reading(path: str, how: str) -> Iterator[None]:
    import av

    try:
        yield
    except StopIteration as error:
        raise MediaError(path, f"cannot be {how} (it ends before the last frame)") from error
    except (av.error.FFmpegError, *PICTURE_ERRORS) as error:
        raise MediaError(path, f"cannot be {how} ({what_failed(error)})") from error
