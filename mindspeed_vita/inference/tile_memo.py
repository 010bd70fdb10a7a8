"""Remembers the tile digests of media files, so that a second question about the same film needs no decoding to name its blocks."""

from __future__ import annotations

import hashlib
import os
import time
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mindspeed_vita.hf.frames import list_frames

_PIECE = 1 << 20
_DIGEST = 32
_TICK = 20_000_000
"""Nanoseconds in which two changes of a file may get the same time. Linux notes times every 1 to 10 ms."""
_COARSE_TICK = 2_000_000_000
"""The same where a file system notes whole seconds, or every second one."""


@dataclass(frozen=True)
class MediaContent:
    """What a medium was when it was read."""

    path: str
    """The file or folder of frames."""
    digest: bytes
    """media_digest."""
    state: tuple[tuple[str, int, int, int, int, int], ...]
    """media_state at the time."""
    frames: tuple[bytes, ...] = ()
    """media_digest of each frame of a folder, in the order of the film; none of a file."""

    def unchanged(self) -> bool:
        """Whether it is still what it was. This reads no bytes, only what the file system notes of a change."""
        try:
            return media_state(self.path) == self.state
        except OSError:
            return False


def read_content(path: str | Path) -> MediaContent:
    """Reads a medium once, all of it.

    A file that was written a moment ago is read a moment later: a further change of it then gets another time, so that it shows.

    Raises:
        OSError: no such file, or it cannot be read.
    """
    state = media_state(path)
    newest = max(changed for *_, changed in state)
    tick = _TICK if newest % 1_000_000_000 else _COARSE_TICK
    left = newest + tick - time.time_ns()
    if 0 < left <= tick:  # a time far ahead is another machine's clock
        time.sleep(left / 1e9)
    if not Path(path).is_dir():
        return MediaContent(str(path), media_digest(path), state)
    frames = _frame_digests(Path(path))
    return MediaContent(str(path), _folder_digest(Path(path), frames), state, tuple(frames.values()))


def media_state(path: str | Path) -> tuple[tuple[str, int, int, int, int, int], ...]:
    """Path, device, inode, size, and times of the last write and of the last change of a file; of a folder, those of each frame in it.

    No program can set the time of the last change back.

    Raises:
        OSError: no such file.
    """
    found = []
    for file in _files(Path(path)):
        held = file.stat()
        found.append((str(file), held.st_dev, held.st_ino, held.st_size, held.st_mtime_ns, held.st_ctime_ns))
    return tuple(found) or (("", 0, 0, 0, 0, 0),)


def _files(path: Path) -> Iterator[Path]:
    """The frames of a folder, also those in folders below it, in the order of the film; or the file itself."""
    yield from map(Path, list_frames(str(path))) if path.is_dir() else (path,)


def media_digest(path: str | Path) -> bytes:
    """SHA-256 of a file's bytes; for a folder of frames, of its path, which its rate follows from, and of its frames' names and bytes.

    Raises:
        OSError: no such file, or it cannot be read.
    """
    path = Path(path)
    if path.is_dir():
        return _folder_digest(path, _frame_digests(path))
    digest = hashlib.sha256()
    with open(path, "rb") as opened:
        while piece := opened.read(_PIECE):
            digest.update(piece)
    return digest.digest()


def _frame_digests(folder: Path) -> dict[str, bytes]:
    """By path below the folder, in the order of the film."""
    return {str(file.relative_to(folder)): media_digest(file) for file in _files(folder)}


def _folder_digest(folder: Path, frames: Mapping[str, bytes]) -> bytes:
    whole = hashlib.sha256(b"folder\n" + hashlib.sha256(os.fsencode(folder.absolute())).digest())
    for name, digest in frames.items():
        whole.update(hashlib.sha256(os.fsencode(name)).digest() + digest)
    return whole.digest()


class TileMemo:
    """Tile digests by content of the file and settings; the entry that was used least recently goes first.

    The key is the content itself, read anew for each question. Size, time stamp and inode are no substitute: a file that is rewritten in
    place within one tick of the file system's clock keeps all three. Reading and hashing a film costs little next to decoding it.

    Args:
        max_tiles: tiles remembered in all, 32 bytes each; at least those of the last film are kept.
    """

    def __init__(self, max_tiles: int = 1 << 20) -> None:
        self._max_tiles, self._num_tiles = max_tiles, 0
        self._held: OrderedDict[bytes, bytes] = OrderedDict()

    def __len__(self) -> int:
        return len(self._held)

    @staticmethod
    def key(content: bytes, settings: str) -> bytes:
        """What a medium is remembered under.

        Args:
            content: media_digest of the file or folder of frames.
            settings: settings_text of the sampling of frames and the processing of pixels.
        """
        return hashlib.sha256(content + settings.encode()).digest()

    def find(self, key: bytes) -> tuple[bytes, ...] | None:
        """The tile digests under a key, or None."""
        held = self._held.get(key)
        if held is None:
            return None
        self._held.move_to_end(key)
        return tuple(held[at : at + _DIGEST] for at in range(0, len(held), _DIGEST))

    def remember(self, key: bytes, digests: Sequence[bytes]) -> None:
        """Keeps the digests of all tiles of a medium.

        Args:
            key: of the medium. The caller has made sure that it did not change between its reading and its decoding.
            digests: of the tiles, in order.
        """
        self._num_tiles += len(digests) - len(self._held.pop(key, b"")) // _DIGEST
        self._held[key] = b"".join(digests)
        while self._num_tiles > self._max_tiles and len(self._held) > 1:
            self._num_tiles -= len(self._held.popitem(last=False)[1]) // _DIGEST
