"""Remembers the tile digests of media files, so that a second question about the same film needs no decoding to name its blocks."""

from __future__ import annotations

import hashlib
import os
from collections import OrderedDict
from collections.abc import Generator, Sequence
from pathlib import Path

_PIECE = 1 << 20
_SLICE = 4 << 20
"""Bytes that are read between two slices."""
_DIGEST = 32


def media_digest(path: str | Path) -> bytes:
    """SHA-256 of a file's bytes; for a folder of frames, of its path, which its rate follows from, and of its files' names and bytes.

    Raises:
        OSError: no such file, or it cannot be read.
    """
    slices = digest_slices(path)
    while True:
        try:
            next(slices)
        except StopIteration as done:
            digest: bytes = done.value
            return digest


def digest_slices(path: str | Path) -> Generator[None, None, bytes]:
    """media_digest in slices: between two of them other work can be done."""
    path = Path(path)
    if path.is_dir():
        whole = hashlib.sha256(b"folder\n" + hashlib.sha256(os.fsencode(path.absolute())).digest())
        read = 0
        for file in sorted(file for file in path.iterdir() if file.is_file()):
            whole.update(hashlib.sha256(os.fsencode(file.name)).digest() + (yield from digest_slices(file)))
            read += file.stat().st_size
            if read >= _SLICE:
                read = 0
                yield
        return whole.digest()
    digest, read = hashlib.sha256(), 0
    with open(path, "rb") as opened:
        while piece := opened.read(_PIECE):
            digest.update(piece)
            read += len(piece)
            if read % _SLICE == 0:
                yield
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

    def remember(self, key: bytes, again: bytes, digests: Sequence[bytes]) -> bool:
        """Keeps the digests of tiles that were decoded after `key` was made.

        Args:
            key: of the file before it was decoded.
            again: the key of the file as it is now. If the file changed in between, the tiles may not be those of the key, and nothing
                is kept.
            digests: of the tiles.

        Returns:
            Whether they were kept.
        """
        if again != key:
            return False
        self._num_tiles += len(digests) - len(self._held.pop(key, b"")) // _DIGEST
        self._held[key] = b"".join(digests)
        while self._num_tiles > self._max_tiles and len(self._held) > 1:
            self._num_tiles -= len(self._held.popitem(last=False)[1]) // _DIGEST
        return True
