"""Frames of a video file by number, with the library of choice. The same frames come from each; PyAV is the one that is always there."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from PIL import Image

from mindspeed_vita.data.media.paths import MediaError
from mindspeed_vita.hf.frames import decode_file_frames, open_file


def read_frames(path: str, numbers: Sequence[int], *, reader: str, longest_side: int | None = None) -> Iterator[Image.Image]:
    """One picture per number, a file that ends early repeating its last frame.

    Args:
        path: video file.
        numbers: ascending frame numbers.
        reader: pyav, decord or torchcodec.
        longest_side: pixels that frames are scaled to inside the decoder (pyav only); None keeps their size.

    Raises:
        MediaError: the reader is not installed.
        av.error.FFmpegError, OSError or ValueError: the file cannot be decoded, or its container is none that PyAV may open here.
    """
    if reader == "pyav":
        yield from decode_file_frames(path, numbers, longest_side=longest_side)
        return
    with open_file(path):  # the other readers open every format, playlists too
        pass
    yield from (_decord if reader == "decord" else _torchcodec)(path, numbers)


def _decord(path: str, numbers: Sequence[int]) -> Iterator[Image.Image]:
    try:
        import decord
    except ImportError as error:
        raise MediaError(path, "data.video_reader is decord, which is not installed here (wheels exist for x86-64)") from error
    try:
        video = decord.VideoReader(path, num_threads=1)
        last = len(video) - 1
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
    last = len(video) - 1
    for number in numbers:
        yield Image.fromarray(video[min(number, last)].numpy())
