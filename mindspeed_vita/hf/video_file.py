"""Frames of a video file by number. Number n is what a plain decode of the film, from its start and in order, shows as its n-th frame.

What the container says is not taken on trust: frames before a cut, frames that cannot be decoded and dropped frames are accounted for.
A leaf (Pillow, PyAV): it is copied into exported checkpoints.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from fractions import Fraction
from itertools import islice
from typing import Any

from PIL import Image

CONTAINERS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpeg,mpegts,flv,ogg,asf,gif"
"""FFmpeg's demuxers that may open a video file. Playlists are none of them: they name other files."""
_SEEKABLE = {"mov", "mp4", "matroska", "webm"}
"""Containers in which a seek to a key frame is exact."""
_HEAD = 48
"""Packets looked at to see whether a film begins cleanly with a key frame; more than any decoder keeps back."""
_COVER = 0x400
"""FFmpeg's AV_DISPOSITION_ATTACHED_PIC: a picture of the film, stored as a stream of one frame."""
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


Film = Any
"""Path of a video file, or an object whose open() gives a new binary file object that can seek: a part of a larger file."""


@dataclass(frozen=True)
class FilmHeader:
    """What the frames to take follow from."""

    num_frames: int
    """Frames that have a number."""
    fps: float
    """Average frame rate, as the container says."""
    seconds: float
    """From the first frame to the end of the last."""


@dataclass(frozen=True)
class Timeline:
    """When the frames of a film are shown, as far as its packets say. Times are in units of `tick` seconds."""

    times: list[int]
    """Of each frame that a plain decode shows, ascending."""
    keys: dict[int, int]
    """Decoding time of each key frame, by the time at which it is shown."""
    tick: Fraction
    end: int
    """When the last frame ends."""
    counts_ticks: bool = False
    """Frame numbers count ticks, as AVI does: a tick without a frame of its own shows the one before."""

    @property
    def num_frames(self) -> int:
        """Frames that have a number."""
        return self.times[-1] - self.times[0] + 1 if self.counts_ticks else len(self.times)

    @property
    def seconds(self) -> float:
        """From the first frame to the end of the last."""
        return float((self.end - self.times[0]) * self.tick)

    def place(self, number: int) -> int:
        """Which of `times` a frame number stands for; one beyond the end stands for the last."""
        if self.counts_ticks:
            return bisect_right(self.times, self.times[0] + number) - 1
        return min(number, len(self.times) - 1)

    def place_at(self, milliseconds: int) -> int:
        """Which of `times` is on the screen at a moment after the first frame."""
        return max(bisect_right(self.times, self.times[0] + int(Fraction(milliseconds, 1000) / self.tick)) - 1, 0)

    def irregular(self) -> bool:
        """Whether frames are spaced unevenly: gaps wider than usual make up more than a fifth of the time. A cut leaves one such gap."""
        return _uneven(self.times)


@contextmanager
def open_file(path: Film) -> Iterator[Any]:
    """Opens a video file with PyAV. Nothing but the file is read: no playlist, no address, no pipe.

    Raises:
        av.error.FFmpegError or OSError: the file cannot be opened, or is none of CONTAINERS.
    """
    import av

    options = {"protocol_whitelist": "file", "format_whitelist": CONTAINERS}
    with nullcontext(path) if isinstance(path, str) else path.open() as file, av.open(file, container_options=options) as container:
        yield container


def film_stream(container: Any) -> Any:
    """The video stream that is the film: no cover picture and, of several streams, the one that FFmpeg's own programs would play.

    Raises:
        ValueError: there is none.
    """
    films = [stream for stream in container.streams.video if not int(getattr(stream, "disposition", 0)) & _COVER]
    if not films:
        raise ValueError("no video stream in the file" + (" but a cover picture" if container.streams.video else ""))
    best = container.streams.best("video") if len(films) > 1 and hasattr(container.streams, "best") else None
    return best if best in films else films[0]


def probe_file(path: Film) -> FilmHeader:
    """Number of frames, frame rate and length of a video file. No more is decoded than the first frames.

    The count is that of MP4's table of samples; other containers are counted packet by packet, as their headers may be wrong. An MP4
    file that breaks off keeps the count of its table.

    Raises:
        av.error.FFmpegError, OSError or ValueError: the file cannot be opened, is no video or has no frame rate.
    """
    with open_file(path) as container:
        stream = film_stream(container)
        fps = float(stream.average_rate or stream.guessed_rate or 0)
        table = _table_of_samples(container, stream)
    count = len(table)
    # an MP4 file of evenly spaced frames needs no look at every packet
    timeline = None if count and not _uneven(table) else read_timeline(path)
    if count:
        count -= _undecodable_head(path)
    elif timeline is not None:
        count = timeline.num_frames
    else:
        count = sum(1 for _ in _decode_in_order(path))
    seconds = timeline.seconds if timeline is not None else count / fps if fps else 0.0
    if count < 1:
        raise ValueError("no frame in it can be decoded")
    if not fps:
        raise ValueError("found no frame rate in its header; write the file again, for example with ffmpeg -r")
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
        fps = float(film_stream(container).average_rate or 0)
    timeline = read_timeline(path)
    if timeline is None:
        places = [int(number * fps / 1000) for number in numbers] if by_time else list(numbers)
    else:
        places = [timeline.place_at(number) if by_time else timeline.place(number) for number in numbers]
    if timeline is not None and seekable and timeline.keys:
        frames = _decode_by_key_frames(path, timeline, places)
    elif timeline is not None and not timeline.counts_ticks:
        frames = _shown_at(_decode_in_order(path), [timeline.times[place] for place in places])
    else:
        frames = _at_places(_decode_in_order(path), places)
    for frame in frames:
        yield _picture(frame, longest_side)


def read_timeline(path: Film) -> Timeline | None:
    """The timeline of a film, from its packets; None if they do not say when each frame is shown."""
    with open_file(path) as container:
        stream, avi = film_stream(container), container.format.name == "avi"
        tick = stream.time_base
        packets = [packet for packet in container.demux(stream) if packet.size and not packet.is_discard]
    # AVI gives packets a place on a grid of ticks, in the order of decoding; in the order of showing they have the same places
    shown = [packet.dts if avi else packet.pts for packet in packets]
    if not packets or any(time is None for time in shown) or any(packet.dts is None for packet in packets):
        return None
    decoded = [packet.dts for packet in packets]
    times = sorted(shown)
    if any(later <= earlier for earlier, later in zip(decoded, decoded[1:])) or len(set(times)) != len(times):
        return None
    keys = {packet.pts: packet.dts for packet in packets if packet.is_keyframe} if not avi else {}
    first = _first_time(path, packets) if not avi else times[0]
    if first is None:
        return None
    kept = times[bisect_left(times, first) :]
    last = max(packets, key=lambda packet: packet.dts if avi else packet.pts)
    usual = (kept[-1] - kept[0]) // max(len(kept) - 1, 1)
    end = kept[-1] + (last.duration or usual or 1)
    return Timeline(kept, {key: dts for key, dts in keys.items() if key >= first}, tick, end, counts_ticks=avi)


def _first_time(path: Film, packets: list[Any]) -> int | None:
    """Time of the first frame that a decoder shows. A clip that was cut without encoding may begin with frames that it cannot decode."""
    head = packets[:_HEAD]
    if head[0].is_keyframe and all(packet.pts > head[0].pts for packet in head[1:]):
        return int(head[0].pts)
    first = next(_decode_in_order(path), None)
    return None if first is None or first.pts is None else int(first.pts)


def _table_of_samples(container: Any, stream: Any) -> list[int]:
    """Decoding times in the table of an MP4 or QuickTime file, without frames that an edit list hides; empty where there is no table."""
    if "mov" not in container.format.name.split(",") or not stream.frames or not hasattr(stream, "index_entries"):
        return []
    return [entry.timestamp for entry in stream.index_entries if not entry.is_discard]


def _uneven(times: list[int]) -> bool:
    """Whether gaps wider than usual make up more than a fifth of the time between the first and the last of ascending times."""
    gaps = sorted(later - earlier for earlier, later in zip(times, times[1:]))
    if len(gaps) < 3:
        return False
    usual = gaps[len(gaps) // 2]
    return sum(gap for gap in gaps if gap > 1.5 * usual + 1) > 0.2 * sum(gaps)


def _undecodable_head(path: Film) -> int:
    """Packets at the start of a film whose frames are shown before the first one that can be decoded."""
    with open_file(path) as container:
        packets = (packet for packet in container.demux(film_stream(container)) if packet.size and not packet.is_discard)
        head = list(islice(packets, _HEAD))
    if not head or any(packet.pts is None for packet in head):
        return 0
    first = _first_time(path, head)
    return 0 if first is None else sum(1 for packet in head if packet.pts < first)


def _decode_in_order(path: Film) -> Iterator[Any]:
    """Every frame that can be decoded, from the start. Packets that the decoder refuses are passed over, as FFmpeg's programs do."""
    with open_file(path) as container:
        yield from _decode(container.demux(film_stream(container)))


def _decode(packets: Iterator[Any]) -> Iterator[Any]:
    import av

    for packet in packets:
        try:
            frames = packet.decode()
        except av.error.InvalidDataError:
            continue
        yield from frames


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
        yield from _shown_at(_decode_in_order(path), wanted[taken:])


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
        for frame in _decode(iter([packet])):
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
