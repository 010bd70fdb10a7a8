"""Media paths stay inside the media root, and a picture or video that cannot be used says why."""

from __future__ import annotations

import json
import os
import re

_FRAMES = "frames!/"
_MEMBER = re.compile(r"(.+?)!/(\d+\+\d+/.*|\w+/\d+/\d+)", re.DOTALL)
"""A reference as members.py writes them; what the container is called does not matter."""


_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")


class MediaError(Exception):
    """A picture or video that cannot be used. Its sample is skipped (index) or masked (decoding), never the run stopped."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(path, reason)
        self.path = path
        self.reason = reason


def what_failed(error: Exception) -> str:
    """Kind and text of a library's error, without the addresses of objects: the same damage gives the same reason in every process."""
    return f"{type(error).__name__}: {_ADDRESS.sub('', str(error))}"


def resolve(path: str, root: str) -> str:
    """Absolute path of a medium, symbolic links followed; of a reference into a container, that of the container is.

    Args:
        path: as written in the sample: relative to root, or absolute.
        root: folder that no medium may lie outside of; or a shard or Parquet file that is a symbolic link in such a folder.

    Raises:
        MediaError: nothing there, or it lies outside.
    """
    if not path or "\0" in path or not _encodable(path):
        raise MediaError(path, "is no path")
    frames = split_frames(path)
    if frames is not None:
        return frames_reference([resolve(frame, root) for frame in frames])
    container = split_member(path)
    if os.path.isfile(root):
        if container is not None and container[0] == os.path.basename(root):
            return f"{os.path.realpath(root)}!/{container[1]}"
        root = os.path.dirname(os.path.abspath(root))
    if container is not None:
        return f"{resolve(container[0], root)}!/{container[1]}"
    real_root = os.path.realpath(root)
    real = os.path.realpath(os.path.join(real_root, path))
    if real != real_root and not real.startswith(real_root.rstrip(os.sep) + os.sep):
        raise MediaError(path, f"lies outside the media root {real_root} (symbolic links followed); move it in or set data.media_root")
    if not os.path.exists(real):
        raise MediaError(path, f"no such file below {real_root}")
    return real


def split_member(path: str) -> tuple[str, str] | None:
    """(container, member) of a reference into a tar shard or a Parquet file; None for a plain path."""
    found = _MEMBER.fullmatch(path)
    return (found[1], found[2]) if found else None


def frames_reference(paths: list[str]) -> str:
    """Names a video that is a list of frames; it stands where a path does."""
    return _FRAMES + json.dumps(paths, ensure_ascii=False)


def split_frames(path: str) -> list[str] | None:
    """The paths of the frames of such a reference; None for anything else."""
    if not path.startswith(_FRAMES):
        return None
    try:
        paths = json.loads(path[len(_FRAMES) :])
    except ValueError:
        return None
    return paths if isinstance(paths, list) and paths and all(isinstance(frame, str) for frame in paths) else None


def _encodable(path: str) -> bool:
    """Whether a file system could hold the name: JSON may write half of a surrogate pair."""
    try:
        os.fsencode(path)
    except UnicodeEncodeError:
        return False
    return True
