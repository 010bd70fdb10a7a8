"""Media paths stay inside the media root, and a picture or video that cannot be used says why."""

from __future__ import annotations

import os


class MediaError(Exception):
    """A picture or video that cannot be used. Its sample is skipped (index) or masked (decoding), never the run stopped."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(path, reason)
        self.path = path
        self.reason = reason


def resolve(path: str, root: str) -> str:
    """Absolute path of a medium, symbolic links followed.

    Args:
        path: as written in the sample: relative to root, or absolute.
        root: folder that no medium may lie outside of.

    Raises:
        MediaError: nothing there, or it lies outside.
    """
    if not path or "\0" in path or not _encodable(path):
        raise MediaError(path, "is no path")
    real_root = os.path.realpath(root)
    real = os.path.realpath(os.path.join(real_root, path))
    if real != real_root and not real.startswith(real_root.rstrip(os.sep) + os.sep):
        raise MediaError(path, f"lies outside the media root {real_root} (symbolic links followed); move it in or set data.media_root")
    if not os.path.exists(real):
        raise MediaError(path, f"no such file below {real_root}")
    return real


def _encodable(path: str) -> bool:
    """Whether a file system could hold the name: JSON may write half of a surrogate pair."""
    try:
        os.fsencode(path)
    except UnicodeEncodeError:
        return False
    return True
