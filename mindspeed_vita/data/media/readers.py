"""Frames of a video file by number, with the library of choice. PyAV is always there and the default.

The other readers count frames by what a container says. They are refused for containers whose word cannot be taken, and where their
count is not that of a plain decode, so that every reader gives the same frames. All of them turn frames as the file says.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from importlib.util import find_spec

from PIL import Image

from mindspeed_vita.data.media.file_part import FilePart
from mindspeed_vita.data.media.paths import MediaError
from mindspeed_vita.hf.video_file import decode_file_frames, open_file, probe_file

_ONLY_PYAV = "avi,mpeg,mpegts,flv,ogg,asf,gif"
"""Containers in which frames before a cut, dropped frames or wrong headers make the other readers take other frames."""


def check_reader(reader: str) -> None:
    """Refuses a reader that is not installed, before a file is read with it.

    Raises:
        ValueError: it is not.
    """
    if reader != "pyav" and find_spec(reader) is None:
        raise ValueError(f"data.video_reader is {reader}, which is not installed here; install it, or set data.video_reader=pyav")


def read_frames(
    path: str | FilePart, numbers: Sequence[int], *, reader: str, longest_side: int | None = None, by_time: bool = False
) -> Iterator[Image.Image]:
    """One picture per number, a file that ends early repeating its last frame.

    Args:
        path: video file, or a film inside a shard (pyav only).
        numbers: ascending frame numbers.
        reader: pyav, decord or torchcodec.
        longest_side: pixels that frames are scaled to inside the decoder (pyav only); None keeps their size.
        by_time: numbers are milliseconds (pyav only).

    Raises:
        MediaError: the reader is not installed, or it would take other frames of this file.
        av.error.FFmpegError, OSError or ValueError: the file cannot be decoded, or its container is none that PyAV may open here.
    """
    if reader == "pyav":
        yield from decode_file_frames(path, numbers, longest_side=longest_side, by_time=by_time)
        return
    if isinstance(path, FilePart):
        raise MediaError(f"{path.path}: {path.name}", f"data.video_reader={reader} reads no videos inside shards; use pyav")
    with open_file(path) as container:  # the other readers open every format, playlists too
        found = set(container.format.name.split(",")) & set(_ONLY_PYAV.split(","))
    if found:
        raise MediaError(path, f"data.video_reader={reader} takes wrong frames of {', '.join(sorted(found))} files; use pyav")
    yield from (_decord if reader == "decord" else _torchcodec)(path, numbers)


def _check_count(path: str, reader: str, count: int) -> int:
    """Number of the last frame of a reader that counts as a plain decode does."""
    shown = probe_file(path).num_frames
    if count != shown:
        raise MediaError(path, f"data.video_reader={reader} finds {count} frames, a plain decode shows {shown}; use pyav")
    return count - 1


def _decord(path: str, numbers: Sequence[int]) -> Iterator[Image.Image]:
    try:
        import decord
    except ImportError as error:
        raise MediaError(path, "data.video_reader is decord, which is not installed here (wheels exist for x86-64)") from error
    try:
        video = decord.VideoReader(path, num_threads=1)
        last = _check_count(path, "decord", len(video))
        for number in numbers:
            yield Image.fromarray(video[min(number, last)].asnumpy())
    except (decord.DECORDError, decord.DECORDLimitReachedError) as error:
        raise MediaError(path, f"cannot be decoded by decord ({' '.join(str(error).split())[:200]})") from error


def _torchcodec(path: str, numbers: Sequence[int]) -> Iterator[Image.Image]:
    try:
        from torchcodec.decoders import VideoDecoder
    except (ImportError, OSError, RuntimeError) as error:
        raise MediaError(path, "data.video_reader is torchcodec, which does not load here (it needs FFmpeg's libraries)") from error
    video = VideoDecoder(path, dimension_order="NHWC", num_ffmpeg_threads=1)
    last = _check_count(path, "torchcodec", len(video))
    for number in numbers:
        yield Image.fromarray(video[min(number, last)].numpy())
