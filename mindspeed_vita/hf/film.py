"""A film: a video file's stream, decoded in order, and when each of its frames is shown.

What the container says is not taken on trust: frames before a cut, frames that cannot be decoded and dropped frames are accounted for.
A leaf (PyAV): it is copied into exported checkpoints.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from fractions import Fraction
from itertools import islice
from typing import Any, NamedTuple

CONTAINERS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpeg,mpegts,flv,ogg,asf,gif"
"""FFmpeg's demuxers that may open a video file. Playlists are none of them: they name other files."""
_HEAD = 48
"""Packets looked at to see whether a film begins cleanly with a key frame; more than any decoder keeps back."""
_COVER = 0x400
"""FFmpeg's AV_DISPOSITION_ATTACHED_PIC: a picture of the film, stored as a stream of one frame."""

Film = Any
"""Path of a video file, or an object whose open() gives a new binary file object that can seek: a part of a larger file."""


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
        return uneven(self.times)


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


def decode_in_order(path: Film) -> Iterator[Any]:
    """Every frame that can be decoded, from the start. Packets that the decoder refuses are passed over, as FFmpeg's programs do."""
    with open_file(path) as container:
        yield from decode(container.demux(film_stream(container)))


def decode(packets: Iterator[Any]) -> Iterator[Any]:
    import av

    for packet in packets:
        try:
            frames = packet.decode()
        except av.error.InvalidDataError:
            continue
        yield from frames


class _Packet(NamedTuple):
    """What is kept of a packet: not its payload, or a film would lie in memory as a whole."""

    pts: Any
    dts: Any
    duration: Any
    is_keyframe: bool


def _packets(container: Any) -> Iterator[_Packet]:
    """Packets of the film that are shown, in the order of decoding."""
    for packet in container.demux(film_stream(container)):
        if packet.size and not packet.is_discard:
            yield _Packet(packet.pts, packet.dts, packet.duration, bool(packet.is_keyframe))


def read_timeline(path: Film) -> Timeline | None:
    """The timeline of a film, from its packets; None if they do not say when each frame is shown."""
    with open_file(path) as container:
        avi, tick = container.format.name == "avi", film_stream(container).time_base
        packets = list(_packets(container))
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


def _first_time(path: Film, packets: list[_Packet]) -> int | None:
    """Time of the first frame that a decoder shows. A clip that was cut without encoding may begin with frames that it cannot decode."""
    head = packets[:_HEAD]
    if head[0].is_keyframe and all(packet.pts > head[0].pts for packet in head[1:]):
        return int(head[0].pts)
    first = next(decode_in_order(path), None)
    return None if first is None or first.pts is None else int(first.pts)


def table_of_samples(container: Any, stream: Any) -> list[int]:
    """Decoding times in the table of an MP4 or QuickTime file, without frames that an edit list hides; empty where there is no table."""
    if "mov" not in container.format.name.split(",") or not stream.frames or not hasattr(stream, "index_entries"):
        return []
    return [entry.timestamp for entry in stream.index_entries if not entry.is_discard]


def uneven(times: list[int]) -> bool:
    """Whether gaps wider than usual make up more than a fifth of the time between the first and the last of ascending times."""
    gaps = sorted(later - earlier for earlier, later in zip(times, times[1:]))
    if len(gaps) < 3:
        return False
    usual = gaps[len(gaps) // 2]
    return sum(gap for gap in gaps if gap > 1.5 * usual + 1) > 0.2 * sum(gaps)


def undecodable_head(path: Film) -> int:
    """Packets at the start of a film whose frames are shown before the first one that can be decoded."""
    with open_file(path) as container:
        head = list(islice(_packets(container), _HEAD))
    if not head or any(packet.pts is None for packet in head):
        return 0
    first = _first_time(path, head)
    return 0 if first is None else sum(1 for packet in head if packet.pts < first)
