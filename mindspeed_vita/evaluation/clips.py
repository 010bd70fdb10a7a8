"""A part of a video, as a path with a media fragment: film.mp4#t=3.5,7 means seconds 3.5 to 7.

Frames of a folder have no clock; "&fps=3" at the end says how many of them make a second.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Optional

from mindspeed_vita.data.assemble import Medium
from mindspeed_vita.data.media.video import VideoHeader
from mindspeed_vita.inference.prompt import PromptEncoder

_FRAGMENT = re.compile(r"#t=(\d+(?:\.\d+)?),(\d+(?:\.\d+)?)(?:&fps=(\d+(?:\.\d+)?))?$")


@dataclass(frozen=True)
class Clip:
    """A part of a video."""

    start: float
    """Seconds."""
    end: float
    """Seconds."""
    fps: Optional[float] = None
    """Frames of a second; None: as the video says."""

    def __post_init__(self) -> None:
        if not 0 <= self.start < self.end:
            raise ValueError(f"a clip from second {self.start:g} to {self.end:g}; expected a start of at least 0 before the end")

    def path(self, path: str) -> str:
        """The path with this part's fragment."""
        return f"{path}#t={self.start},{self.end}" + (f"&fps={self.fps}" if self.fps else "")


def split_clip(path: str) -> tuple[str, Optional[Clip]]:
    """A path without its fragment, and the part that the fragment names."""
    found = _FRAGMENT.search(path)
    if found is None:
        return path, None
    start, end, fps = found.groups()
    return path[: found.start()], Clip(float(start), float(end), float(fps) if fps else None)


class ClipEncoder(PromptEncoder):
    """A PromptEncoder that knows parts of videos."""

    def _video(self, path: str) -> Medium:
        path, clip = split_clip(path)
        medium = super()._video(path)
        if clip is None:
            return medium
        assert medium.header is not None
        numbers = self._numbers(medium, medium.header, clip)
        return replace(medium, numbers=numbers, factors=tuple(self.pooling.factors(len(numbers))))

    def _numbers(self, medium: Medium, header: VideoHeader, clip: Clip) -> tuple[int, ...]:
        fps = clip.fps or header.fps
        first, stop = int(clip.start * fps), min(int(clip.end * fps) + 1, header.num_frames)
        if first >= stop:
            raise ValueError(f"video {medium.path} ends at second {header.num_frames / fps:g}, before its part from second {clip.start:g}")
        part = replace(header, num_frames=stop - first, fps=fps, milliseconds=0)
        if self.decoding.by_time and not header.is_folder:
            return tuple(round(1000 * clip.start) + number for number in self.limits.frames(part, self.limits.max_frames))
        return tuple(first + number for number in self.limits.frames(part, self.limits.max_frames))

    def frame_times(self, path: str) -> list[float]:
        """When the frames that are taken of a video are shown, in seconds.

        Raises:
            ValueError: the video cannot be used.
        """
        medium = self._video(path)
        assert medium.header is not None
        clip = split_clip(path)[1]
        fps = (clip.fps if clip is not None else None) or medium.header.fps
        rate = 1000.0 if self.decoding.by_time and not medium.header.is_folder else fps
        return [number / rate for number in medium.numbers]
