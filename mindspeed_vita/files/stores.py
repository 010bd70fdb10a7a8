"""Object stores by address (s3://bucket/folder), through fsspec. An address is the only thing that reaches the network here.

fsspec and the package of the scheme (s3fs for s3) are an extra: pip install 'mindspeed_vita[stores]'. Credentials and the endpoint come
from the environment, as the scheme's own tools read them (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_ENDPOINT_URL).
"""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Optional

from mindspeed_vita.addresses import ADDRESS
from mindspeed_vita.files.publish import whole_file
from mindspeed_vita.files.write_fault import NO_ROOM

_STAMPS = ("ETag", "etag", "md5", "generation")
"""What stores call the mark of an object's content; the first that is there counts."""
_OWN_DISK = (*NO_ROOM, errno.EROFS)
"""Faults of the local disk."""
_FOLDERS = ("file", "local")
"""Schemes of folders of this host, in which a file can be seen while it is written."""
_TIMES = ("LastModified", "last_modified", "mtime", "modified", "created", "updated")


def cache_folder() -> Path:
    """Where fetched files lie unless a setting says otherwise: mindspeed_vita in $XDG_CACHE_HOME or ~/.cache."""
    home = os.path.expanduser("~")  # stays as it is where this user has no home
    above = os.environ.get("XDG_CACHE_HOME") or os.path.join(home if os.path.isabs(home) else tempfile.gettempdir(), ".cache")
    return Path(above) / "mindspeed_vita"


class StoreError(ValueError):
    """A store cannot be reached, or refuses."""


class NotThere(StoreError):
    """An object, folder or bucket does not exist."""


def scheme_and_path(address: str) -> tuple[str, str]:
    """The two parts of an address: s3 and bucket/folder, without a slash at the end.

    Raises:
        ValueError: it is no address, or one that leads out of itself.
    """
    found = ADDRESS.fullmatch(address)
    path = "" if found is None else found[2].rstrip("/")
    reasons = (
        ("::" in address, "chains of schemes (::) are not followed"),
        (found is None, "it does not begin with scheme://"),
        ("\0" in address, "it has a NUL"),
        (".." in path.split("/"), "it has a part '..', and a store has no folder above"),
        (not path.strip("/"), "it names no bucket"),
    )
    reason = next((text for holds, text in reasons if holds), "")
    if found is None or reason:
        raise ValueError(f"{address!r} is no address of a store ({reason}); expected scheme://bucket/folder, such as s3://bucket/runs/a")
    return found[1].lower(), path


def check_name(name: str, place: str) -> str:
    """Returns the name of an object below a place, if it stays below any folder that it is joined to.

    Names come from whoever writes to the store. S3 allows keys such as a//etc/passwd and a/../b.

    Raises:
        ValueError: it is absolute, or has a part that is empty, . or .., or a NUL.
    """
    if "\0" in name or any(part in ("", ".", "..") for part in name.split("/")):
        raise ValueError(f"{place} names {name!r}, which could lead out of its folder; rename or remove that object")
    return name


class NoBucket(NotThere):
    """The bucket of an address does not exist."""


class AccessRefused(StoreError):
    """The store does not take the credentials, or they do not suffice."""


@dataclass(frozen=True)
class Stored:
    """What a store says about an object."""

    size: int
    """Bytes."""
    stamp: str
    """Differs where the content differs: the ETag, where the store has one."""
    modified: float
    """Seconds since 1970; 0 where the store does not say."""


class Store:
    """A folder in a store. Names are relative to it, with slashes.

    It may be used by several threads and after a fork: every call asks fsspec anew for its file system.

    Args:
        address: scheme://bucket/folder.

    Raises:
        ValueError: no such address, or the packages for its scheme are not installed.
    """

    def __init__(self, address: str) -> None:
        self.scheme, self.path = scheme_and_path(address)
        self.address = f"{self.scheme}://{self.path}"
        self._system()

    def at(self, name: str) -> str:
        """The address of an object."""
        return f"{self.address}/{name}" if name else self.address

    def is_there(self) -> bool:
        """Whether the folder holds anything, or is an object. Raises StoreError as about."""
        try:
            self.about("")
        except NotThere:
            return False
        return True

    def children(self) -> list[str]:
        """Names directly below, of objects and of folders, sorted; none where nothing is there.

        Raises:
            StoreError: the store cannot be reached, or refuses.
            ValueError: as check_name.
        """
        try:
            with _named(self.address, "listing it"):
                system = self._fresh()
                found, top = system.ls(self.path, detail=False), self._top(system)
        except NoBucket:
            raise
        except NotThere:
            return []
        names = {str(path).removeprefix(top).rstrip("/") for path in found if str(path).startswith(top)}
        return [check_name(name, self.address) for name in sorted(names - {""})]

    def files(self) -> dict[str, Stored]:
        """Every object below, by name; none where nothing is there.

        Raises:
            StoreError: the store cannot be reached, or refuses.
            ValueError: as check_name.
        """
        with _named(self.address, "listing it"):
            system = self._fresh()
            found, top = system.find(self.path, detail=True), self._top(system)
        return self._below(top, found)

    def matching(self, pattern: str) -> dict[str, Stored]:
        """Objects below whose name fits a pattern of * ? [] and **, by name. Raises as files."""
        with _named(self.at(pattern), "listing it"):
            system = self._fresh()
            found, top = system.glob(f"{self.path}/{pattern}", detail=True), self._top(system)
        return self._below(top, {path: info for path, info in found.items() if info.get("type") == "file"})

    def _top(self, system: Any) -> str:
        """What the paths that fsspec gives begin with."""
        return str(system._strip_protocol(self.path)).rstrip("/") + "/"

    def _below(self, top: str, found: Mapping[str, Any]) -> dict[str, Stored]:
        """Objects by name. An empty one whose name ends with a slash marks a folder in some tools, and is none."""
        objects = {path.removeprefix(top): _stored(info) for path, info in sorted(found.items()) if path.startswith(top)}
        return {check_name(name, self.address): about for name, about in objects.items() if about.size or name.rpartition("/")[2]}

    def about(self, name: str) -> Optional[Stored]:
        """What the store says about an object; None for a folder.

        Raises:
            NotThere: nothing has that name.
            StoreError: the store cannot be reached, or refuses.
        """
        with _named(self.at(name), "asking about it"):
            info = self._fresh().info(self._full(name))
        return _stored(info) if info.get("type") == "file" else None

    def is_object(self, name: str) -> bool:
        """Whether an object has that name. Raises StoreError as about."""
        try:
            return self.about(name) is not None
        except NotThere:
            return False

    def read(self, name: str) -> bytes:
        """The content of a small object. Raises as about."""
        with _named(self.at(name), "reading it"):
            return bytes(self._fresh().cat_file(self._full(name)))

    def write(self, name: str, content: bytes) -> None:
        """Writes a small object, whole or not at all. Raises as about."""
        with _named(self.at(name), "writing it"):
            system, target = self._system(), self._full(name)
            if self.scheme in _FOLDERS:
                system.pipe_file(f"{target}.part", content)
                system.mv(f"{target}.part", target)
            else:
                system.pipe_file(target, content)

    def send(self, path: Path, name: str) -> None:
        """Copies a local file to the store.

        Raises:
            OSError: the local file cannot be read.
            StoreError: the store cannot be reached, or refuses.
        """
        with path.open("rb"):  # so that a missing file is no fault of the store
            pass
        with _named(self.at(name), "writing it", local=path):
            self._system().put_file(str(path), self._full(name))

    def fetch(self, name: str, target: Path) -> Stored:
        """Copies an object to a local file, which appears when it is whole.

        Returns:
            what the store said about the object.

        Raises:
            OSError: the local file cannot be written.
            NotThere: there is no such object.
            StoreError: the store cannot be reached or refuses, or the object changed meanwhile.
        """
        before = self.about(name)
        if before is None:
            raise NotThere(f"{self.at(name)} is a folder; expected an object")
        target.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(target) as temporary:
            with _named(self.at(name), "reading it", local=temporary):
                self._fresh().get_file(self._full(name), str(temporary))
            if temporary.stat().st_size != before.size or self.about(name) != before:
                raise StoreError(f"{self.at(name)} changed while it was fetched; start again when nothing writes there")
        return before

    def copy(self, name: str, target: str) -> None:
        """Copies an object to another name, within the store. Raises StoreError as about."""
        with _named(self.at(name), "copying it"):
            self._fresh().cp_file(self._full(name), self._full(target))

    def remove(self, name: str) -> None:
        """Removes an object, or a folder with all below it. One that is not there is no fault. Raises StoreError as about."""
        try:
            with _named(self.at(name), "removing it"):
                self._fresh().rm(self._full(name), recursive=True)
        except NotThere:
            pass

    def _full(self, name: str) -> str:
        return f"{self.path}/{name}" if name else self.path

    def _system(self) -> Any:
        """fsspec's file system; fsspec keeps one for each process and thread."""
        try:
            import fsspec
        except ModuleNotFoundError as error:
            raise ValueError(f"{self.address} needs the package fsspec; pip install 'mindspeed_vita[stores]'") from error
        try:
            options = {"auto_mkdir": True} if self.scheme in _FOLDERS else {}
            return fsspec.filesystem(self.scheme, **options)
        except ImportError as error:
            raise ValueError(f"{self.address}: {error}; pip install 'mindspeed_vita[stores]' has what s3 needs") from error
        except ValueError as error:
            raise ValueError(f"{self.address}: fsspec knows no scheme {self.scheme!r} ({error}); use one such as s3") from error

    def _fresh(self) -> Any:
        """The same without listings that it remembers."""
        system = self._system()
        system.invalidate_cache()
        return system


def _stored(info: Any) -> Stored:
    size = int(info.get("size") or 0)
    time = next((info[key] for key in _TIMES if info.get(key)), None)
    modified = time.timestamp() if isinstance(time, datetime) else float(time) if isinstance(time, (int, float)) else 0.0
    mark = next((str(info[key]) for key in _STAMPS if info.get(key)), None)
    return Stored(size, mark.strip('"') if mark is not None else f"{size} {modified:.6f}", modified)


@contextmanager
def _named(address: str, doing: str = "the request", *, local: Optional[Path] = None) -> Iterator[None]:
    """Turns what fsspec and the packages below it raise into one message with the place. Faults of this host's disk pass through.

    Args:
        address: what is asked for.
        doing: what is done with it, for the message.
        local: the file of this host that is written or read meanwhile. Python names the file in an error; stores give no file name.
    """
    try:
        yield
    except StoreError:
        raise
    except OSError as error:
        own = local is not None and error.filename is not None and os.fspath(error.filename) in (str(local), str(local.parent))
        if own or error.errno in _OWN_DISK:
            raise
        raise _translated(error, address, doing) from error
    except Exception as error:  # each scheme has exceptions of its own
        raise _translated(error, address, doing) from error


def _translated(error: Exception, address: str, doing: str) -> StoreError:
    if isinstance(error, FileNotFoundError):
        if "bucket does not exist" in str(error):  # s3fs has no type of its own for it
            return NoBucket(f"{address}: there is no such bucket; make it, or correct the address")
        return NotThere(f"{address}: nothing is there (no such object or bucket); correct the address")
    text = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, PermissionError) or "credential" in text.lower():
        advice = "set the store's credentials (for s3: AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY), or have the right granted"
        return AccessRefused(f"{address}: access is refused ({text}); {advice}")
    advice = "check the network and the endpoint (for s3: AWS_ENDPOINT_URL)"
    return StoreError(f"{address}: {doing} failed ({type(error).__name__}: {text}); {advice}")
