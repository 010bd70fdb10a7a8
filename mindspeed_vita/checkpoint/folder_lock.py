"""A lock file that says which process writes to a folder: safe after a crash, between hosts, and on NFS.

The file is made with O_EXCL, which servers of NFS 3 and later carry out as one step; flock is not used. Whether its owner still lives is
judged in one of two ways:

- On the owner's own machine by the process: id and time of start. A dead owner's lock is taken over at once.
- From other machines, from other containers, and where /proc hides the processes of other users, by the owner's heartbeat, the file's
  time of modification. It is compared with that of a file made just now in the same folder. The file server's clock sets both, so clocks
  of hosts may differ.

An owner that was silent for so long that another took over finds that out before it writes a checkpoint, and stops.
"""

from __future__ import annotations

import json
import os
import platform
import shlex
import sys
import threading
import time
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Iterator, Optional
from uuid import uuid4

from mindspeed_vita.files.write_fault import named_write_fault

BEAT = 20.0
"""Seconds between heartbeats."""
SILENT = 300.0
"""Seconds without a heartbeat after which an owner on another machine counts as dead: many beats, and more than NFS caches attributes."""
_LOOK = 2.0
"""Seconds between two looks at an owner that may be dead."""
RUN_LOCK = "run.lock"
"""The lock of a run folder, inside it."""


class FolderInUse(ValueError):
    """Another process writes to the folder."""


@dataclass(frozen=True, kw_only=True)
class Owner:
    """Who holds a lock."""

    host: str
    pid: int
    started: str
    """When the process started, in the kernel's clock ticks since its boot; process ids are used again, these pairs are not."""
    kernel: str
    """The host's boot and the pid namespace: where they are equal, a process id means the same process. Empty: unknown."""
    since: str
    """When the lock was taken, UTC."""
    work: str
    """What the process does."""
    token: str
    """Names this taking of the lock."""

    @classmethod
    def this_process(cls, work: str) -> Owner:
        """This process, with a token of its own."""
        return cls(
            host=platform.node(),
            pid=os.getpid(),
            started=_started(os.getpid()) or "",
            kernel=_kernel(),
            since=datetime.now(timezone.utc).isoformat(timespec="seconds"),
            work=work,
            token=uuid4().hex,
        )

    @property
    def can_be_looked_up(self) -> bool:
        """Whether its process id means something to this process."""
        return bool(self.kernel) and self.kernel == _kernel()

    def lives(self) -> Optional[bool]:
        """Whether the process is there; None where this process cannot find out."""
        if not self.can_be_looked_up:
            return None
        started = _started(self.pid)
        if started is None and _is_hidden(self.pid):
            return None
        return started == self.started


class FolderLock:
    """One lock file. Not for several threads at once, apart from its own heartbeat.

    Args:
        path: the lock file; its folder is made.
        folder: what it stands for, for messages.
        work: what this process does there, for messages.
        advice: what a user can do instead of waiting, for messages.
        patient: wait for an owner on another machine until it gives a sign of life, which refuses this process, or counts as dead. A run
            that a scheduler starts again on another host, or in another container, needs no person then.
    """

    def __init__(self, path: Path, *, folder: Path, work: str, advice: str, patient: bool = False) -> None:
        self.path, self.folder, self.work, self.advice, self.patient = path, folder, work, advice, patient
        self._owner: Optional[Owner] = None
        self._ended = threading.Event()
        self._made: Optional[Path] = None
        self._last_beat = 0.0

    def acquire(self) -> None:
        """Takes the lock.

        Raises:
            FolderInUse: another process holds it.
            ValueError: the folder cannot be made.
            OSError: the folder cannot be written.
        """
        if not self.path.parent.is_dir():
            try:
                self.path.parent.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise ValueError(f"{self.folder}: the folder cannot be made ({error.strerror}); name one that can be written") from error
            self._made = self.path.parent
        owner = Owner.this_process(self.work)
        for turn in range(5):  # the second time after taking over; more often only in a race with others, who then have it
            time.sleep(0.05 * max(0, turn - 1))
            self._last_beat = _clock()
            if _create(self.path, owner):
                self._owner = owner
                self._ended.clear()
                threading.Thread(target=self._beat, name="vita-lock", daemon=True).start()
                self._tidy()
                return
            if self.patient:
                self._watch_owner()
            self._remove_if_dead(self.path, owner)
        raise FolderInUse(f"{self.folder}: several processes take {self.path} at this moment; {self.advice}")

    def _watch_owner(self) -> None:
        """Waits while nobody can say whether the owner lives: up to its next heartbeat, or up to SILENT seconds after the last one."""
        owner, silence = _read(self.path), _silence(self.path)
        if silence is None or silence > SILENT or (owner is not None and owner.lives() is not None):
            return
        told = f"the run goes on in {SILENT - silence:.0f} s, or ends here if that process gives a sign of life before"
        print(f"vita: {self.folder} is held by {_name(owner)}, last sign of life {silence:.0f} s ago; {told}", file=sys.stderr, flush=True)
        heard = False
        while not heard and silence <= SILENT:
            time.sleep(_LOOK)
            before, silence = silence, _silence(self.path)
            if silence is None or _read(self.path) != owner:
                return
            heard = silence < before

    def check(self) -> None:
        """Makes sure that the lock is still this process's. Call it before anything is written that another run must not meet.

        Raises:
            FolderInUse: another process has taken over.
        """
        assert self._owner is not None, "not acquired"
        found = _read(self.path)
        quiet = _clock() - self._last_beat
        if found is None and quiet < SILENT - BEAT and not self.path.exists() and _create(self.path, self._owner):
            return  # somebody deleted the file. No other run can have come and gone: this one was not silent for long enough
        if found is None or found.token != self._owner.token:
            other = "another process" if found is None else _name(found)
            raise FolderInUse(
                f"{self.folder} was taken over by {other}, as this process (id {self._owner.pid} on {self._owner.host}) had given no sign "
                f"of life for {SILENT:.0f} s, or its {self.path.name} was deleted; this run stops, so that checkpoints do not mix"
            )

    def release(self) -> None:
        """Gives the lock back, and removes the folder if the lock made it and nothing else came. Does nothing where it is not held."""
        owner, self._owner = self._owner, None
        self._ended.set()
        if owner is not None:
            found = _read(self.path)
            if found is not None and found.token == owner.token:
                self.path.unlink(missing_ok=True)
        if self._made is not None:
            with suppress(OSError):  # not empty: the work was done
                self._made.rmdir()

    def _remove_if_dead(self, path: Path, taker: Owner) -> None:
        """Returns where the owner was dead: its file is gone, or about to be.

        Args:
            path: the lock, or the right to take it over, which is a lock of the same kind: its owner may have died, too.
            taker: this process.

        Raises:
            FolderInUse: the lock's owner lives, or may live.
        """
        owner, silence = _read(path), _silence(path)
        if silence is None:
            return  # given back in this moment
        lives = None if owner is None else owner.lives()
        dead = silence > SILENT if lives is None else not lives
        if not dead and path != self.path:
            return  # another process takes the lock over in this moment
        if not dead:
            raise FolderInUse(self._in_use(owner, silence, known=lives is not None))
        # one process at a time may remove this owner's file, so that none removes that of one who was faster
        right = self.path.with_name(f".{self.path.name}.over-{owner.token if owner else 'unnamed'}")
        if path == right:  # nobody wrote a name, twice: then there is nothing to tell the two apart by
            right.unlink(missing_ok=True)
            return
        if not _create(right, taker):
            self._remove_if_dead(right, taker)
            return
        try:
            if _read(path) == owner:
                path.unlink(missing_ok=True)
                if path == self.path:
                    ended = f"{_name(owner)}, which ended without giving it back"
                    print(f"vita: took over {self.folder} from {ended}", file=sys.stderr, flush=True)
        finally:
            right.unlink(missing_ok=True)

    def _tidy(self) -> None:
        """Removes what processes have left that died while they looked for an owner. A right that somebody holds is worth nothing now."""
        for left in self.path.parent.glob(f".{self.path.name}.*"):
            left.unlink(missing_ok=True)

    def _in_use(self, owner: Optional[Owner], silence: float, *, known: bool) -> str:
        line = f"{self.folder} is in use by {_name(owner)}, last sign of life {silence:.0f} s ago; {self.advice}"
        if known and owner is not None:
            return f"{line}, or end that process: kill {owner.pid}"
        left = max(0.0, SILENT - silence)
        remedy = f"to start now, run: rm {shlex.quote(str(self.path))}"
        return f"{line}; if that process is gone, the next start takes the lock over in {left:.0f} s; {remedy}"

    def _beat(self) -> None:
        while not self._ended.wait(BEAT):
            owner = self._owner
            # a beat that fails is followed by the next; `check` finds out if another took over meanwhile
            with suppress(OSError):
                found = _read(self.path)
                if owner is not None and found is not None and found.token == owner.token:
                    now = _clock()  # before the beat, which may take long
                    os.utime(self.path)
                    self._last_beat = now


def _create(path: Path, owner: Owner) -> bool:
    """Makes a lock file; False where there is one already."""
    try:
        handle = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
    except FileExistsError:
        return False
    try:
        with named_write_fault(path), os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(json.dumps(asdict(owner), indent=1) + "\n")
            file.flush()
            os.fsync(file.fileno())
    except BaseException:  # a full disk, or a signal: an empty lock would keep everybody out
        path.unlink(missing_ok=True)
        raise
    return True


@contextmanager
def held(path: Path, *, folder: Path, work: str, advice: str) -> Iterator[FolderLock]:
    """The lock for a block; arguments and errors as FolderLock."""
    lock = FolderLock(path, folder=folder, work=work, advice=advice)
    try:
        lock.acquire()
        yield lock
    finally:
        lock.release()


def _name(owner: Optional[Owner]) -> str:
    if owner is None:
        return "a process that did not write its name"
    return f"{owner.work}, process {owner.pid} on host {owner.host}, since {owner.since}"


def _read(path: Path) -> Optional[Owner]:
    """The owner a file names; None where there is no file, or where it is not written yet."""
    try:
        return Owner(**json.loads(path.read_text(encoding="utf-8")))
    except (FileNotFoundError, ValueError, TypeError):
        return None


def _silence(path: Path) -> Optional[float]:
    """Seconds since the last heartbeat by the file server's clock; None where the file is gone."""
    probe = path.with_name(f".{path.name.lstrip('.')}.{uuid4().hex}")
    try:
        with open(path, "rb") as file:  # opening asks an NFS server for the file's present times
            beat = os.fstat(file.fileno()).st_mtime
        probe.touch(exist_ok=False)
        return max(0.0, probe.stat().st_mtime - beat)
    except FileNotFoundError:
        return None
    finally:
        probe.unlink(missing_ok=True)


def _started(pid: int) -> Optional[str]:
    """When a process started; None where none is seen, or only one that has ended and waits for its parent."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            fields = file.read().rsplit(")", 1)[1].split()  # a name before it may hold anything
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return None
    return None if fields[0] in "ZX" else fields[19]


def _is_hidden(pid: int) -> bool:
    """Whether there is such a process, and /proc does not show it (the mount option hidepid)."""
    if os.access(f"/proc/{pid}/stat", os.R_OK):
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # of another user; without this error, this process is a root that may signal it but not see it
    return True


def _clock() -> float:
    """Seconds of a clock that is never set. On Linux it goes on while the machine sleeps."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


def _kernel() -> str:
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="utf-8") as file:
            return f"{file.read().strip()} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""
