"""Remembers the tile digests of media files, so that a second question about the same film needs no decoding to name its blocks."""

from __future__ import annotations

import hashlib
import os
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path

_PIECE = 1 << 20
_DIGEST = 32


def media_digest(path: str | Path) -> bytes:
    """SHA-256 of a file's bytes; for a folder of frames, of its path, which its rate follows from, and of its files' names and bytes.

    Raises:
        OSError: no such file, or it cannot be read.
    """
    path = Path(path)
    if path.is_dir():
        whole = hashlib.sha256(b"folder\n" + hashlib.sha256(os.fsencode(path.absolute())).digest())
        for file in sorted(file for file in path.iterdir() if file.is_file()):
            whole.update(hashlib.sha256(os.fsencode(file.name)).digest() + media_digest(file))
        return whole.digest()
    digest = hashlib.sha256()
    with open(path, "rb") as opened:
        while piece := opened.read(_PIECE):
            digest.update(piece)
    return digest.digest()


class TileMemo:
    """Tile digests by content of the file and settings; the entry that was used least recently goes first.

    The key is the content itself, read anew each time. Size, time stamp and inode are no substitute: a file that is rewritten in place
    within one tick of the file system's clock keeps all three. Reading and hashing a film costs little next to decoding it.

    Args:
        max_tiles: tiles remembered in all, 32 bytes each; at least those of the last film are kept.
    """

    def __init__(self, max_tiles: int = 1 << 20) -> None:
        self._max_tiles, self._num_tiles = max_tiles, 0
        self._held: OrderedDict[bytes, bytes] = OrderedDict()

    def __len__(self) -> int:
        return len(self._held)

    def key(self, path: str | Path, settings: str) -> bytes:
        """What a medium is remembered under.

        Args:
            path: the file or folder of frames.
            settings: settings_text of the sampling of frames and the processing of pixels.

        Raises:
            OSError: the file cannot be read.
        """
        return hashlib.sha256(media_digest(path) + settings.encode()).digest()

    def find(self, key: bytes) -> tuple[bytes, ...] | None:
        """The tile digests under a key, or None."""
        held = self._held.get(key)
        if held is None:
            return None
        self._held.move_to_end(key)
        return tuple(held[at : at + _DIGEST] for at in range(0, len(held), _DIGEST))

    def remember(self, key: bytes, path: str | Path, settings: str, digests: Sequence[bytes]) -> bool:
        """Keeps the digests of tiles that were decoded after `key` was made.

        The file is read once more: if it changed in between, the tiles may not be those of the key, and nothing is kept.

        Returns:
            Whether they were kept.

        Raises:
            OSError: the file cannot be read any more.
        """
        if self.key(path, settings) != key:
            return False
        self._num_tiles += len(digests) - len(self._held.pop(key, b"")) // _DIGEST
        self._held[key] = b"".join(digests)
        while self._num_tiles > self._max_tiles and len(self._held) > 1:
            self._num_tiles -= len(self._held.popitem(last=False)[1]) // _DIGEST
        return True
