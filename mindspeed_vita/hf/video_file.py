"""Frames of a video file by number. Number n is what a plain decode of the film, from its start and in order, shows as its n-th frame.

film.py tells when each frame is shown. A leaf (Pillow, PyAV): it is copied into exported checkpoints.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image

from .film import Film, Timeline, decode, decode_in_order, film_stream, open_file, read_timeline, table_of_samples, undecodable_head, uneven

_SEEKABLE = {"mov", "mp4", "matroska", "webm"}
"""Containers in which a seek to a key frame is exact."""
_TURNS = {
    (-1, 0, 0, 1): Image.Transpose.FLIP_LEFT_RIGHT,
    (1, 0, 0, -1): Image.Transpose.FLIP_TOP_BOTTOM,
    (-1, 0, 0, -1): Image.Transpose.ROTATE_180,
    (0, -1, 1, 0): Image.Transpose.ROTATE_90,
    (0, 1, -1, 0): Image.Transpose.ROTATE_270,
    (0, 1, 1, 0): Image.Transpose.TRANSPOSE,
    (0, -1, -1, 0): Image.Transpose.TRANSVERSE,
}
"""Display matrices that are quarter turns and mirrors, as (a, b, c, d): a point (x, y) moves to (a x + c y, b x + d y)."""

@dataclass(frozen=True)
class FilmHeader:
    """What the frames to take follow from."""

    num_frames: int
    """Frames that have a number."""
    fps: float
    """Average frame rate, as the container says."""
    seconds: float
    """From the first frame to the end of the last."""


def probe_file(path: Film) -> FilmHeader:
    """Number of frames, frame rate and length of a video file. No more is decoded than the first frames.

    The count is that of MP4's table of samples; other containers are counted packet by packet, as their headers may be wrong. An MP4
    file that breaks off keeps the count of its table.

    Raises:
        av.error.FFmpegError, OSError or ValueError: the file cannot be opened, is no video or has no frame rate.
    """
    with open_file(path) as container:
        stream = film_stream(container)
        fps = _fps(stream)
        table = table_of_samples(container, stream)
    count = len(table)
    # an MP4 file of evenly spaced frames needs no look at every packet
    timeline = None if count and not uneven(table) else read_timeline(path)
    if count:
        count -= undecodable_head(path)
    elif timeline is not None:
        count = timeline.num_frames
    else:
        count = sum(1 for _ in decode_in_order(path))
    seconds = timeline.seconds if timeline is not None else count / fps
    if count < 1:
        raise ValueError("no frame in it can be decoded")
    return FilmHeader(count, fps, seconds)


def spacing_is_irregular(path: Film) -> bool:
    """Whether a file's frames are spaced unevenly in time; False where the container does not tell their times.

    Raises:
        av.error.FFmpegError, OSError or ValueError: the file cannot be opened, or is no video.
    """
    timeline = read_timeline(path)
    return timeline is not None and timeline.irregular()


def decode_file_frames(
    path: Film, numbers: Sequence[int], *, longest_side: int | None = None, by_time: bool = False
) -> Iterator[Image.Image]:
    """Decodes frames of a video file, one picture per number, turned as the file says.

    Where the container tells every frame's time and can seek (MP4, Matroska), decoding starts at the key frame before each frame and
    leaves out frames that no other refers to; elsewhere it starts at the first frame. Both give the same pictures. A frame that
    cannot be decoded, or lies beyond the end of a file that breaks off, is the last one shown before it.

    Args:
        path: video file, or part of a file.
        numbers: ascending frame numbers, as sample_file_frames gives them.
        longest_side: scale frames inside the decoder so that their longer side has this many pixels; None keeps their size.
        by_time: `numbers` are milliseconds, as sample_file_times gives them.

    Raises:
        av.error.FFmpegError, OSError or ValueError: the file cannot be opened, or holds no frame at all.
    """
    with open_file(path) as container:
        seekable = bool(_SEEKABLE & set(container.format.name.split(",")))
        fps = _fps(film_stream(container))
    timeline = read_timeline(path)
    if timeline is None:
        places = [int(number * fps / 1000) for number in numbers] if by_time else list(numbers)
    else:
        places = [timeline.place_at(number) if by_time else timeline.place(number) for number in numbers]
    if timeline is not None and seekable and timeline.keys:
        frames = _decode_by_key_frames(path, timeline, places)
    elif timeline is not None and not timeline.counts_ticks:
        frames = _shown_at(decode_in_order(path), [timeline.times[place] for place in places])
    else:
        frames = _at_places(decode_in_order(path), places)
    for frame in frames:
        yield _picture(frame, longest_side)


def _fps(stream: Any) -> float:
    """Average frame rate, as the container says.

    Raises:
        ValueError: it does not say.
    """
    fps = float(stream.average_rate or stream.guessed_rate or 0)
    if not fps:
        raise ValueError("found no frame rate in its header; write the file again, for example with ffmpeg -r")
    return fps


def _at_places(frames: Iterator[Any], places: Sequence[int]) -> Iterator[Any]:
    """The frames at ascending places of a sequence; beyond its end the last one."""
    frame, taken = None, 0
    for place, frame in enumerate(frames):
        while taken < len(places) and places[taken] <= place:
            yield frame
            taken += 1
        if taken == len(places):
            return
    if frame is None:
        raise ValueError("no frame could be decoded")
    for _ in places[taken:]:
        yield frame


def _decode_by_key_frames(path: Film, timeline: Timeline, places: Sequence[int]) -> Iterator[Any]:
    """Decodes each run of wanted frames that follow one key frame from that key frame on, whatever was decoded before it."""
    wanted = [timeline.times[place] for place in places]
    keys = sorted(timeline.keys)
    taken = 0
    with open_file(path) as container:
        while taken < len(wanted):
            following = bisect_right(keys, wanted[taken])
            if not following:
                break
            end = bisect_left(wanted, keys[following], taken) if following < len(keys) else len(wanted)
            key = keys[following - 1]
            for frame in _decode_run(container, key, min(key, timeline.keys[key]), set(wanted[taken:end])):
                while taken < end and wanted[taken] == frame.pts:
                    yield frame
                    taken += 1
            if taken < end:
                break
    if taken < len(wanted):  # damage on the way, or frames before the first key frame: only a decode in order tells what is shown
        yield from _shown_at(decode_in_order(path), wanted[taken:])


def _decode_run(container: Any, key: int, seek_to: int, wanted: set[int]) -> Iterator[Any]:
    stream = film_stream(container)
    container.seek(seek_to, stream=stream, backward=True)
    missing, started = set(wanted), False
    for packet in container.demux(stream):
        started = started or packet.pts == key
        if not started and packet.size:
            continue
        # a frame that nobody wants and no other frame refers to costs nothing
        stream.codec_context.skip_frame = "DEFAULT" if packet.pts in wanted or not packet.size else "NONREF"
        for frame in decode(iter([packet])):
            if frame.pts in missing:
                missing.discard(frame.pts)
                yield frame
        if not missing:
            return


def _shown_at(frames: Iterator[Any], wanted: Sequence[int]) -> Iterator[Any]:
    """The frames on the screen at ascending times; before the first frame that one."""
    shown, taken = None, 0
    for frame in frames:
        while shown is not None and taken < len(wanted) and frame.pts is not None and wanted[taken] < frame.pts:
            yield shown
            taken += 1
        if taken == len(wanted):
            return
        shown = frame
    if shown is None:
        raise ValueError("no frame could be decoded")
    for _ in wanted[taken:]:
        yield shown


def _picture(frame: Any, longest_side: int | None) -> Image.Image:
    """The frame as RGB, turned and mirrored as its display matrix says."""
    if longest_side is None:
        picture = frame.to_image()
    else:
        scale = longest_side / max(frame.width, frame.height)
        width, height = max(1, round(frame.width * scale)), max(1, round(frame.height * scale))
        picture = frame.to_image(width=width, height=height, interpolation="BICUBIC")
    turn = _turn(frame)
    return picture if turn is None else picture.transpose(turn)


def _turn(frame: Any) -> Image.Transpose | None:
    matrix = frame.side_data.get("DISPLAYMATRIX")
    if matrix is None:
        return None
    numbers = memoryview(bytes(matrix)).cast("i")
    a, b, c, d = ((value > 0) - (value < 0) for value in (numbers[0], numbers[1], numbers[3], numbers[4]))
    return _TURNS.get((a, b, c, d))
