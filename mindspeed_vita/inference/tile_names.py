"""The digests of running requests' tiles: from the memo where a medium was decoded before, otherwise one by one as tiles are decoded.

Requests about one medium share what is known of it. First rank only.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Optional

from mindspeed_vita.data.assemble import EncodedSample
from mindspeed_vita.inference.block_names import TileSpan, pooled_digest, settings_text
from mindspeed_vita.inference.tile_memo import MediaContent, TileMemo


@dataclass(frozen=True)
class _Part:
    """One medium of a request."""

    content: MediaContent
    key: bytes
    """Of the memo."""
    tiles: range
    """Its tiles among those of the request."""
    frames: tuple[bytes, ...]
    """Keys of the memo of each tile's file, where the medium is a folder of frames: films of other names share what is known of those."""


@dataclass(frozen=True)
class _Request:
    parts: tuple[_Part, ...]
    factors: list[int]
    """By how much each tile is pooled."""
    digests: list[Optional[bytes]]
    """Of each tile; None until it is known."""


class TileNames:
    """What is known of the tiles of waiting and running requests.

    Args:
        memo: remembers media of which all is known.
        settings: of decoding and of the processing of pixels.
        tokens_per_tile: tokens of a tile that is not pooled.
    """

    def __init__(self, memo: TileMemo, settings: Mapping[str, Any], tokens_per_tile: int) -> None:
        self._memo, self._settings, self._tokens_per_tile = memo, settings, tokens_per_tile
        self._requests: dict[int, _Request] = {}
        self._media: dict[bytes, list[Optional[bytes]]] = {}
        """Digests of the media of these requests, by the memo's keys."""

    def spans(self, prompt: EncodedSample, contents: Sequence[MediaContent]) -> tuple[TileSpan, ...]:
        """Where tiles stand in a prompt, with the digests that are known.

        Args:
            prompt: tokens and media.
            contents: of each medium.
        """
        request = self._look_up(prompt, contents)
        promised = [promise for part in request.parts for promise in self._promises(part, request.digests)]
        tiles = zip(prompt.tile_starts_N.tolist(), request.factors, request.digests, promised, strict=True)
        return tuple(
            TileSpan(
                start,
                start + self._tokens_per_tile // factor**2,
                digest and pooled_digest(digest, factor),
                promise and pooled_digest(promise, factor),
            )
            for start, factor, digest, promise in tiles
        )

    def _promises(self, part: _Part, digests: Sequence[Optional[bytes]]) -> list[bytes]:
        """What stands for the tiles of a medium: all of them, as long as one is not known, so that it does not change with time."""
        if None not in digests[part.tiles.start : part.tiles.stop]:
            return [b""] * len(part.tiles)
        keys = part.frames or [part.key + place.to_bytes(8, "little") for place in range(len(part.tiles))]
        return [hashlib.sha256(b"promise" + key).digest() for key in keys]

    def watch(self, number: int, prompt: EncodedSample, contents: Sequence[MediaContent]) -> None:
        """Takes part in what a request's tiles turn out to be, until `forget`. Arguments as in spans."""
        request = self._requests[number] = self._look_up(prompt, contents)
        for part in request.parts:
            self._media.setdefault(part.key, request.digests[part.tiles.start : part.tiles.stop])

    def forget(self, number: int) -> None:
        """The request ended."""
        ended = self._requests.pop(number, None)
        for key in {part.key for part in ended.parts} if ended else ():
            if not any(part.key == key for other in self._requests.values() for part in other.parts):
                self._media.pop(key, None)

    def learn(self, number: int, decoded: Mapping[int, bytes]) -> dict[int, dict[int, bytes]]:
        """Takes the tile digests of what was decoded for a request.

        Another request about the same medium learns them too, unless the file changed since this one's digest was taken.

        Args:
            number: the request.
            decoded: tile_digest by the tile's number in the request.

        Returns:
            What is new to which request: pooled digests by tile.

        Raises:
            ValueError: the request's blocks were named by other pixels: a file changed since they were decoded.
        """
        request, learnt = self._requests[number], dict[int, dict[int, bytes]]()
        for tile, digest in decoded.items():
            if request.digests[tile] not in (None, digest):
                path = next(part.content.path for part in request.parts if tile in part.tiles)
                raise ValueError(f"{path} changed while the request waited; ask again")
            self._note(learnt, number, tile, digest)
        for part in request.parts:
            tiles = [tile for tile in part.tiles if tile in decoded]
            if tiles and None in self._media[part.key] and part.content.unchanged():
                self._share(learnt, part, {tile - part.tiles.start: decoded[tile] for tile in tiles})
        return learnt

    def _share(self, learnt: dict[int, dict[int, bytes]], part: _Part, decoded: Mapping[int, bytes]) -> None:
        """Tells all requests about a medium, or about some of its frames, what the tiles are. Remembers media of which all is known."""
        by_frame = {part.frames[place]: digest for place, digest in decoded.items()} if part.frames else {}
        for key, digest in by_frame.items():
            self._memo.remember(key, [digest])
        for number, other in self._requests.items():
            for same in other.parts:
                frames = {place: by_frame[key] for place, key in enumerate(same.frames) if key in by_frame}
                digests = self._media[same.key]
                for place, digest in (decoded if same.key == part.key else frames).items():
                    digests[place] = digest
                    self._note(learnt, number, same.tiles.start + place, digest)
        for key in {part.key, *(same.key for other in self._requests.values() for same in other.parts if same.frames and by_frame)}:
            whole = [digest for digest in self._media[key] if digest is not None]
            if len(whole) == len(self._media[key]):
                self._memo.remember(key, whole)

    def _note(self, learnt: dict[int, dict[int, bytes]], number: int, tile: int, digest: bytes) -> None:
        request = self._requests[number]
        if request.digests[tile] is None:
            request.digests[tile] = digest
            learnt.setdefault(number, {})[tile] = pooled_digest(digest, request.factors[tile])

    def _look_up(self, prompt: EncodedSample, contents: Sequence[MediaContent]) -> _Request:
        parts, digests = self._parts(prompt, contents), list[Optional[bytes]]()
        for part in parts:
            digests += self._media.get(part.key) or self._memo.find(part.key) or self._frames(part)
        return _Request(parts, prompt.factors_N.tolist(), digests)

    def _frames(self, part: _Part) -> list[Optional[bytes]]:
        """What is known of a medium's tiles from the files of its frames."""
        known = [self._memo.find(key) for key in part.frames]
        return [held[0] if held else None for held in known] or [None] * len(part.tiles)

    def _parts(self, prompt: EncodedSample, contents: Sequence[MediaContent]) -> tuple[_Part, ...]:
        parts, first = [], 0
        for medium, content in zip(prompt.media, contents, strict=True):
            settings = settings_text({**self._settings, "grid": medium.grid, "numbers": medium.numbers})
            frame = settings_text({**self._settings, "frame of": "a folder"})
            frames = tuple(self._memo.key(content.frames[number], frame) for number in medium.numbers) if content.frames else ()
            parts.append(_Part(content, self._memo.key(content.digest, settings), range(first, first + medium.num_tiles), frames))
            first += medium.num_tiles
        return tuple(parts)
