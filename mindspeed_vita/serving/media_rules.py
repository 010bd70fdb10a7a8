"""Where a request's media may come from: its own bytes, files below the media root, allowed hosts. Nothing is decoded here."""

from __future__ import annotations

import base64
import binascii
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Optional
from urllib.parse import unquote, urlsplit

from mindspeed_vita.data.media.paths import MediaError, resolve, split_frames, split_member
from mindspeed_vita.serving.fetching import Fetcher, FetchError

Kind = Literal["image", "video"]

_DATA = re.compile(r"data:(?P<kind>[\w.+-]+)/[\w.+-]+(?:;[\w.+-]+=[\w.+-]+)*;base64,", re.ASCII)
_SHOWN = 60
_PIECE = 1 << 20
"""Characters of base64 that are decoded at a time; a multiple of 4. Decoding keeps all other threads waiting."""


class MediaRefused(ValueError):
    """A medium that the rules do not allow, and why."""


@dataclass(frozen=True, kw_only=True)
class MediaRules:
    """Turns the URLs of a request into paths that the data room may read."""

    root: Optional[Path] = None
    """Folder below which requests may name files; None: none at all."""
    fetcher: Optional[Fetcher] = None
    """Fetches from the allowed hosts; None: nothing is fetched."""
    max_bytes: int = 256 << 20
    """Largest medium that a request may carry itself, decoded, or name below the root."""

    def declared_size(self, url: str, kind: Kind, number: int) -> Optional[int]:
        """Bytes of a medium, before it is decoded, read or fetched; None where that is not known yet.

        Args:
            url, kind, number: as for path_of.

        Raises:
            MediaRefused: not allowed, too large, or no such file.
        """
        where = f"{kind} {number}"
        scheme = _scheme(url)
        if scheme == "data":
            return self._carried(url, kind, where)[1]
        return None if scheme in ("http", "https") else Path(self._file(url, where)).stat().st_size

    def path_of(self, url: str, kind: Kind, folder: Path, number: int, most: Optional[int] = None) -> str:
        """The path of a medium.

        Args:
            url: a data: URL, an http(s) URL, a file: URL, or a path relative to the root.
            kind: what the request calls it.
            folder: where the bytes of a medium are written that has no file here.
            number: the medium's place in the request; names its file.
            most: bytes that may be fetched, where that is less than what any medium may have.

        Raises:
            MediaRefused: not allowed, too large, or no such file.
        """
        where = f"{kind} {number}"
        scheme = _scheme(url)
        if scheme == "data":
            target = folder / f"{number}"
            try:
                _decode(url, self._carried(url, kind, where)[0], target)
            except (binascii.Error, UnicodeEncodeError) as error:
                target.unlink()
                raise MediaRefused(f"{where}: its data: URL is no base64 ({error})") from error
            return str(target)
        if scheme in ("http", "https"):
            if self.fetcher is None:
                raise MediaRefused(f"{where}: this server fetches nothing; send the bytes as a data: URL, or start it with --allow-host")
            target = folder / f"{number}"
            try:
                with open(target, "wb") as file:
                    self.fetcher.fetch(url, file, most)
            except FetchError as error:
                raise MediaRefused(f"{where}: {error}") from error
            return str(target)
        return self._file(url, where)

    def _carried(self, url: str, kind: Kind, where: str) -> tuple[int, int]:
        """Where the base64 of a data: URL begins, and how many bytes it stands for."""
        found = _DATA.match(url)
        if found is None:
            raise MediaRefused(f"{where}: found {_shown(url)}; expected data:{kind}/...;base64,...")
        if found["kind"].lower() != kind:
            raise MediaRefused(f"{where}: its data: URL holds {found['kind']}; expected {kind}/...")
        fours, more = divmod(len(url) - found.end(), 4)
        if more:
            raise MediaRefused(f"{where}: its data: URL is no base64 ({4 * fours + more:,} characters are no multiple of 4)")
        size = 3 * fours - (url.endswith("=") + url.endswith("==") if fours else 0)
        if not 0 < size <= self.max_bytes:
            raise MediaRefused(f"{where}: has {size:,} bytes; expected from 1 to {self.max_bytes:,}")
        return found.end(), size

    def _file(self, url: str, where: str) -> str:
        if self.root is None:
            raise MediaRefused(f"{where}: this server reads no files; send the bytes as a data: URL, or start it with --media-root")
        path = url
        if url[:5].lower() == "file:":
            parts = urlsplit(url)
            if parts.netloc not in ("", "localhost"):
                raise MediaRefused(f"{where}: {_shown(url)} names a file of another machine")
            path = unquote(parts.path)
        if split_frames(path) is not None or split_member(path) is not None:
            raise MediaRefused(f"{where}: {_shown(url)} is no path of a file")
        try:
            found = resolve(path, str(self.root))
        except MediaError as error:
            # neither the root nor what lies outside it is any of the client's business
            raise MediaRefused(f"{where}: {_shown(url)} is no file below the server's media root") from error
        file = Path(found)
        try:
            size = file.stat().st_size if file.is_file() else None
        except OSError:  # gone meanwhile
            size = None
        if size is None:
            raise MediaRefused(f"{where}: {_shown(url)} is no file below the server's media root")
        if size > self.max_bytes:
            raise MediaRefused(f"{where}: has {size:,} bytes, the server allows {self.max_bytes:,}")
        return found


def _scheme(url: str) -> str:
    return url[: url.find(":")].lower() if ":" in url else ""


def _decode(url: str, start: int, target: Path) -> None:
    """Writes the bytes that the base64 of a URL from `start` on stands for.

    Raises:
        binascii.Error, UnicodeEncodeError: it is none. The file is there then, too.
    """
    with open(target, "wb") as file:
        for at in range(start, len(url), _PIECE):
            piece = url[at : at + _PIECE].encode("ascii")
            if at + _PIECE < len(url) and piece.endswith(b"="):
                raise binascii.Error("Excess data after padding")
            file.write(base64.b64decode(piece, validate=True))


def _shown(url: str) -> str:
    return repr(url if len(url) <= _SHOWN else f"{url[:_SHOWN]}...")
