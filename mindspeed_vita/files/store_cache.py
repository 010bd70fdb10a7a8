"""Files of object stores on this host: fetched once, whole, and found at a path that follows from their address.

    FOLDER/files/s3/bucket/...    files that stay as long as nobody removes them, with the store's stamp of each
    FOLDER/media/s3/bucket/...    files that go again when there are too many bytes of them, the longest unused first

The paths must be the same on all hosts of a run. Processes of a host share the folder: one fetches, the others wait for it.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Optional, TypeVar

from mindspeed_vita.files.alone import alone
from mindspeed_vita.files.publish import whole_file
from mindspeed_vita.files.stores import AccessRefused, NoBucket, NotThere, Store, Stored, StoreError, scheme_and_path

_THREADS = 8
"""Objects that a process fetches at a time."""
_PAUSES = (1.0, 4.0, 16.0)
"""Seconds before an object is asked for again, where the store did not answer."""
IN_USE = 1800.0
"""Seconds since its last use in which a file is not removed, whatever there is: a decoder may be about to open it."""
_LOOKS = 20
"""How many times the bytes are counted while the room is filled once."""
_T = TypeVar("_T")
_executors: dict[int, ThreadPoolExecutor] = {}
"""By process: threads do not survive a fork."""


@dataclass(frozen=True)
class StoreCache:
    """The cache in one folder."""

    folder: str
    """Absolute path."""
    most_bytes: int
    """Of media."""

    def media_folder(self, address: str) -> str:
        """Where the media below an address lie. Nothing is fetched."""
        return self._place("media", address)

    def media_address(self, root: str) -> Optional[str]:
        """The address of which media_folder gives a folder; None for any other folder."""
        return self._address("media", root)

    def file_address(self, path: str) -> Optional[str]:
        """The address of a file that `files` fetched; None for any other path."""
        return self._address("files", path)

    def _place(self, kind: str, address: str) -> str:
        scheme, path = scheme_and_path(address)
        return os.path.join(self.folder, kind, scheme, path.strip("/"))

    def _address(self, kind: str, path: str) -> Optional[str]:
        top = os.path.join(self.folder, kind) + os.sep
        if not path.startswith(top):
            return None
        scheme, _, rest = path.removeprefix(top).partition(os.sep)
        return f"{scheme}://{'/' if scheme in ('file', 'local') else ''}{rest}"

    def files(self, store: Store, found: Mapping[str, Stored]) -> list[str]:
        """Local paths of files that stay. What has another stamp than before is fetched again.

        Args:
            store: where they lie.
            found: what the store says about each, by name.

        Raises:
            StoreError: one cannot be fetched, or changed since it was found.
            OSError: the folder cannot be written.
        """
        return several(lambda item: self._file(store, *item), list(found.items()))

    def _file(self, store: Store, name: str, wanted: Stored) -> str:
        target, stamp = Path(self._place("files", store.at(name))), self._stamp("files", store.at(name))
        content = json.dumps({"address": store.at(name), "size": wanted.size, "stamp": wanted.stamp})
        with self._alone(stamp.name):
            fresh = stamp.is_file() and stamp.read_text(encoding="utf-8") == content
            if fresh and target.is_file() and target.stat().st_size == wanted.size:
                return str(target)
            stamp.unlink(missing_ok=True)
            got = patiently(lambda: store.fetch(name, target))
            if got != wanted:
                raise StoreError(f"{store.at(name)} changed while the run was starting; start again when nothing writes there")
            if wanted.modified:  # the index knows a file by its time, and hosts may share the index
                os.utime(target, (wanted.modified, wanted.modified))
            with whole_file(stamp) as temporary:
                temporary.write_text(content, encoding="utf-8")
        return str(target)

    def media(self, root: str, names: Iterable[str]) -> dict[str, Optional[str]]:
        """Fetches the media that are not here: objects, or folders of objects (the frames of a video).

        Args:
            root: what media_folder gave.
            names: below it, without .. and not absolute.

        Returns:
            For each name why it cannot be had, or None.

        Raises:
            StoreError: the store cannot be reached, or refuses.
            OSError: the folder cannot be written.
        """
        address = self.media_address(root)
        assert address is not None, root
        store, wanted = Store(address), list(dict.fromkeys(names))
        return dict(zip(wanted, several(lambda name: self._medium(store, root, name), wanted)))

    def _medium(self, store: Store, root: str, name: str) -> Optional[str]:
        target = Path(root, name)
        if _touched(target):
            return None
        frames = self._stamp("folders", store.at(name))
        with self._alone(frames.name):
            if _touched(target):
                return None
            try:
                known = _frames(frames)
                if known is None:
                    found = patiently(lambda: store.about(name))
                    if found is not None:
                        self._fetch(store, name, found.size, target)
                        return None
                    known = patiently(lambda: _frames_below(Store(store.at(name))))
                for frame, size in known.items():
                    if not _touched(target / frame):
                        self._fetch(store, f"{name}/{frame}", size, target / frame)
            except NoBucket:
                raise
            except NotThere:
                return f"no such object below {store.address}"
            if not frames.is_file():
                with whole_file(frames) as temporary:
                    temporary.write_text(json.dumps(known), encoding="utf-8")
            return None

    def _fetch(self, store: Store, name: str, size: int, target: Path) -> None:
        self._make_room(size)
        patiently(lambda: store.fetch(name, target))
        _touched(target, always=True)

    def _make_room(self, size: int) -> None:
        """Removes media that were not used for the longest time, where there would be too many bytes.

        The processes of the host note in one file how many bytes came since the last count. They count anew now and then only.

        Raises:
            StoreError: the disk is too small.
        """
        note = Path(self.folder, "locks", "bytes")
        with self._alone("room"):
            since = _number_in(note)
            if since is None or since + size >= self.most_bytes // _LOOKS:
                self._remove_unused(size)
                since = 0
            note.write_text(str(since + size), encoding="utf-8")
        free = shutil.disk_usage(self.folder).free
        if free < size:
            raise StoreError(
                f"{self.folder} has {free / 1e9:,.2f} GB free, a medium needs {size / 1e9:,.2f} GB; free space there, lower "
                "data.store_cache_bytes, or set data.store_cache to a folder on a larger disk"
            )

    def _remove_unused(self, size: int) -> None:
        found = sorted(_uses(os.path.join(self.folder, "media")))
        total, now = sum(nbytes for _, nbytes, _ in found) + size, time.time()
        for used, nbytes, path in found if total > self.most_bytes else ():
            if total <= self.most_bytes * (1 - 1 / _LOOKS) or used > now - IN_USE:
                break
            with suppress(FileNotFoundError):
                os.unlink(path)
            total -= nbytes

    def _stamp(self, kind: str, address: str) -> Path:
        name = hashlib.sha256(f"{kind} {address}".encode("utf-8", "surrogateescape")).hexdigest()
        place = Path(self.folder, "stamps", name[:2], name)
        place.parent.mkdir(parents=True, exist_ok=True)
        return place

    def _alone(self, name: str) -> AbstractContextManager[None]:
        """One at a time at the same place. A few thousand locks serve all places."""
        return alone(Path(self.folder, "locks", name if name == "room" else name[:3]))


def _number_in(note: Path) -> Optional[int]:
    """The number that a file holds; None where there is no such file, or a killed process left it half written."""
    try:
        return int(note.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None


def _frames(stamp: Path) -> Optional[dict[str, int]]:
    """Bytes by name of the frames of a folder that was fetched before."""
    return dict(json.loads(stamp.read_text(encoding="utf-8"))) if stamp.is_file() else None


def _frames_below(folder: Store) -> dict[str, int]:
    found = {name: stored.size for name, stored in folder.files().items() if "/" not in name}
    if not found:
        raise NotThere(f"{folder.address} holds nothing")
    return found


def _touched(path: Path, *, always: bool = False) -> bool:
    """Whether a file is here; notes that it is used."""
    try:
        found = os.stat(path)
        if not os.path.isfile(path):
            return False
        if always or found.st_mtime < time.time() - 60:
            os.utime(path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def _uses(top: str) -> Iterator[tuple[float, int, str]]:
    """Last use, bytes and path of each file below a folder."""
    for parent, _, names in os.walk(top):
        for name in names:
            path = os.path.join(parent, name)
            with suppress(FileNotFoundError):
                found = os.stat(path)
                yield found.st_mtime, found.st_size, path


def several(work: Callable[..., _T], items: Sequence[object]) -> list[_T]:
    """The result for each item, several at a time. What work raises is raised when nothing of it runs any more; the rest is not begun."""
    if len(items) < 2:
        return [work(item) for item in items]
    if os.getpid() not in _executors:
        _executors[os.getpid()] = ThreadPoolExecutor(_THREADS, thread_name_prefix="vita-fetch")
    futures = [_executors[os.getpid()].submit(work, item) for item in items]
    try:
        wait(futures, return_when=FIRST_EXCEPTION)
    finally:
        begun = [future for future in futures if not future.cancel()]
        wait(begun)
    for future in begun:
        future.result()
    return [future.result() for future in futures]


def patiently(ask: Callable[[], _T]) -> _T:
    """Asks again where the store did not answer; what is missing or refused stays so."""
    for pause in _PAUSES:
        try:
            return ask()
        except (NotThere, AccessRefused):
            raise
        except StoreError:
            time.sleep(pause)
    return ask()
