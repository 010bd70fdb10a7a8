"""The encoded samples of packs: one process per host reads and tokenises them, and hands them to the ranks there that need the same pack.

The processes meet in a folder in shared memory, so their loader processes need no connections. The leader writes a pack once and makes a
link to it for each follower; a follower removes its link when it has read the pack. engine/feed.py says who leads, and where.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import pickle
import shutil
import tempfile
import time
import weakref
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Optional, TypeVar

from mindspeed_vita.data import pack_faults
from mindspeed_vita.data.at_work import note

_T = TypeVar("_T")
_PREFIX = "vita_packs"
_SHORTEST, _LONGEST = 0.0005, 0.01
"""Seconds between two looks for a pack."""
_LAST_WORDS = 3.0
"""Seconds that the others have to take a fault, before the process that met it goes on to its end."""
_LEADER_LOOK = 2.0
"""Seconds between two looks for the leader."""
_REMEDY = (
    "Give the machine or container more shared memory (docker run --shm-size), or set data.tokenize_once=false: then each rank tokenises "
    "for itself"
)
_led: dict[Path, int] = {}
"""Folders that this process leads, each with its lock."""
_joined: set[Path] = set()
"""Folders that this process uses, led by it or not."""


class ShareClosed(RuntimeError):
    """The iteration or the run is ending: nobody needs the pack any more."""


@dataclass(kw_only=True, eq=False)
class PackShare:
    """One rank's part in handing out the packs of a data set. It ends with the object.

    Attributes:
        folder: the one that all these ranks use.
        rank: of this process.
        leader: the rank that reads and tokenises.
        followers: the ranks that get its packs.
    """

    folder: Path
    rank: int
    leader: int
    followers: tuple[int, ...]
    _streams: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        _joined.add(self.folder)
        weakref.finalize(self, _leave, self.folder, self.leads, os.getpid())

    @property
    def leads(self) -> bool:
        """Whether this process reads the packs."""
        return self.rank == self.leader

    def open(self) -> PackStream:
        """This rank's part in the next iteration. All ranks begin their iterations in the same order."""
        for unread in self.folder.glob(f"*.for_{self.rank}"):
            # read ahead in an iteration that ended; the leader may be in the next one already
            if int(unread.name.partition(".")[0]) <= self._streams:
                unread.unlink(missing_ok=True)
        self._streams += 1
        return PackStream(share=self, number=self._streams)


@dataclass(kw_only=True, eq=False)
class PackStream:
    """One rank's part in one iteration. Loader processes, which are forked later, use it too."""

    share: PackShare
    number: int
    _ended: mmap.mmap = field(default_factory=lambda: mmap.mmap(-1, 1), init=False)
    """One byte that the loader processes see: whether the iteration has ended."""

    def get(self, pack: int, read: Callable[[], _T]) -> _T:
        """What the leader's `read` returns.

        Args:
            pack: its number.
            read: reads and tokenises the pack; called on the leader only.

        Raises:
            ValueError: the leader found a fault in the data, it is gone, or the folder has no room.
            ShareClosed: the iteration or the run is ending.
        """
        if not self.share.leads:
            return self._take(pack)  # type: ignore[no-any-return]
        try:
            content = read()
            self._hand_out(pack, content)
        except ShareClosed:
            raise
        except Exception as error:
            of_user = isinstance(error, (ValueError, OSError))
            text = str(error) if of_user else f"{type(error).__name__}: {error}"
            fault = pack_faults.PackFault(stream=self.number, pack=pack, message=text, of_user=of_user)
            # it waits, as a process that is about to end takes the folder along
            pack_faults.tell(self.share.folder, fault, followers=len(self.share.followers), seconds=_LAST_WORDS)
            raise
        return content

    def end(self) -> None:
        """The iteration has ended: loader processes that wait for a pack stop waiting."""
        self._ended[0] = 1

    def _link(self, pack: int, rank: int) -> Path:
        return self.share.folder / f"{self.number}.{pack}.for_{rank}"

    def _hand_out(self, pack: int, content: Any) -> None:
        """Gives a pack to all followers, or to none that has not taken it yet."""
        folder = self.share.folder
        written = folder / f"{self.number}.{pack}.written_by_{os.getpid()}"
        links = [self._link(pack, rank) for rank in self.share.followers]
        try:
            with open(written, "wb") as file:
                pickle.dump(content, file, protocol=pickle.HIGHEST_PROTOCOL)
            for link in links:
                os.link(written, link)
        except FileNotFoundError:
            raise ShareClosed(f"{folder} is gone: another rank of this host has ended") from None
        except OSError as error:
            for link in links:
                link.unlink(missing_ok=True)
            raise ValueError(f"pack {pack:,} cannot be handed to the other ranks of this host: {error}. {_REMEDY}") from error
        finally:
            written.unlink(missing_ok=True)

    def _take(self, pack: int) -> Any:
        link, pause = self._link(pack, self.share.rank), _SHORTEST
        next_look = time.monotonic() + _LEADER_LOOK
        note(f"pack {pack:,}, which rank {self.share.leader} reads")
        while (content := self._read(link)) is None:
            self._raise_if_told(pack)
            if self._ended[0] or not self.share.folder.exists():
                raise ShareClosed(f"pack {pack:,} is not needed any more")
            if time.monotonic() > next_look:
                if _leader_is_gone(self.share.folder) and not link.exists():
                    raise ValueError(
                        f"rank {self.share.leader}, which reads pack {pack:,} for all ranks of this host that need it, has ended. Its own "
                        "message says why. Start the run again: it continues from the newest checkpoint"
                    )
                next_look = time.monotonic() + _LEADER_LOOK
            time.sleep(pause)
            pause = min(2 * pause, _LONGEST)
        link.unlink(missing_ok=True)
        return pickle.loads(content)

    def _read(self, link: Path) -> Optional[bytes]:
        try:
            return link.read_bytes()
        except FileNotFoundError:  # not there yet, or taken back, as another follower could not be given the pack
            return None

    def _raise_if_told(self, pack: int) -> None:
        place = self.share.followers.index(self.share.rank)
        fault = pack_faults.find(self.share.folder, stream=self.number, pack=pack, follower=place)
        if fault is not None:
            raise ValueError(fault.message) if fault.of_user else RuntimeError(f"rank {self.share.leader}: {fault.message}")


def make_folder() -> Path:
    """Makes a folder that this process leads, for this user alone. First removes folders whose leaders were killed.

    The folder has its name only once it is locked, so that no other process takes it for one that was left behind.

    Raises:
        ValueError: there is no room for it.
    """
    place = Path("/dev/shm")
    place = place if os.access(place, os.W_OK) else Path(tempfile.gettempdir())
    for other in place.glob(f"{_PREFIX}_{os.getuid()}_*"):
        with suppress(FileNotFoundError):  # another leader that starts now has removed it
            if other.stat().st_uid == os.getuid() and _leader_is_gone(other):
                shutil.rmtree(other, ignore_errors=True)
    new: Optional[Path] = None
    try:
        new = Path(tempfile.mkdtemp(prefix=f"{_PREFIX}_new_", dir=place))
        pack_faults.make_pages(new)
    except OSError as error:
        if new is not None:
            shutil.rmtree(new, ignore_errors=True)
        raise ValueError(f"{place} has no room for the packs that the ranks of this host share: {error}. {_REMEDY}") from error
    lock = os.open(new, os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_EX)
    folder = new.rename(place / f"{_PREFIX}_{os.getuid()}_{new.name.removeprefix(f'{_PREFIX}_new_')}")
    _led[folder] = lock
    return folder


def remove_folder(folder: Path) -> None:
    """Removes a folder that this process leads."""
    shutil.rmtree(folder, ignore_errors=True)
    os.close(_led.pop(folder))


def remove_all() -> None:
    """Removes all folders that this process uses. For a process that is about to end with the whole run, in whatever state the run is."""
    for folder in {*_led, *_joined}:
        shutil.rmtree(folder, ignore_errors=True)


def _leave(folder: Path, leads: bool, process: int) -> None:
    if os.getpid() != process:  # a forked process has the same object
        return
    _joined.discard(folder)
    if leads:
        remove_folder(folder)


def _leader_is_gone(folder: Path) -> bool:
    """Whether no process holds the folder's lock. The leader's loader processes hold it too, and end soon after the leader."""
    try:
        lock = os.open(folder, os.O_RDONLY)
    except FileNotFoundError:
        return True
    try:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return True
    except BlockingIOError:
        return False
    finally:
        os.close(lock)
