"""Sends published steps to checkpoint.store behind training's back. A failure is told and tried again; it never ends a run.

Each rank sends the files that it wrote, in a thread of its own. The ranks agree between two steps of training: first rank 0 gets the place
ready, then all send, then rank 0 compares what the store lists and sends the checksum file, by which the step is whole. Then it prunes.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future, wait
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Optional

from mindspeed_vita.checkpoint.native import atomic
from mindspeed_vita.checkpoint.native.ranks import gather, on_first_rank, rank, world
from mindspeed_vita.checkpoint.native.stored_aside import set_aside_others
from mindspeed_vita.checkpoint.native.stored_steps import StoredSteps, files_of_rank, recorded_in
from mindspeed_vita.config import CheckpointConfig

FIRST_PAUSE = 2.0
"""Seconds after a first failure; they double with each further one."""
_LONGEST_PAUSE = 600.0
LAST_TRIES = 5
"""Failures in a row after which the end of a run does not wait any longer."""
PATIENCE = 1800.0
"""Seconds without a file sent or a failure on any rank after which the end of a run does not wait any longer: a call may never return."""
_LOOK = 0.1
"""Seconds between two looks while the end of a run waits."""
_PREPARE, _SEND, _COMPLETE, _PRUNE = range(4)
"""Phases of a step."""


@dataclass(frozen=True)
class _Status:
    """What a rank tells the others between two steps."""

    done: bool
    """Whether its thread has nothing to do."""
    error: str
    """Why its thread failed."""
    due: bool
    """Whether the pause after a failure is over, by this rank's clock. The first rank's counts."""
    result: Any
    """Of the first rank's thread: first what StoredSteps.begin gave, or why the step is not sent; later the name of the best step."""
    idle: float
    """Seconds since this rank sent, copied or removed something, or the phase began."""


class Uploads:
    """The steps on their way to the store. Collective, but for `add`, which each rank calls with the same step.

    One step is sent at a time, the newest first; what the store would prune at once is not sent. The one that is being sent is not pruned
    from the run's folder, and with checkpoint.keep_unsent none is that waits.

    Args:
        settings: the recipe's section; without a `store` nothing is sent.
        say: prints a line, on the first rank.

    Raises:
        OSError: the run's folder cannot be written.
        ValueError: the address is none, packages are missing, or to_store.json cannot be read.
    """

    def __init__(self, settings: CheckpointConfig, say: Callable[[str], None]) -> None:
        self._directory, self._keep, self._hold = Path(settings.directory), settings.keep, settings.keep_unsent
        self._steps = StoredSteps(settings.store, self._note_move) if settings.store else None
        self._address = settings.store
        self._say = say if rank() == 0 else _nothing
        self._waiting: list[str] = []
        """Steps that are not in the store, but for the current one."""
        self._newest = ""
        """The run's newest published step."""
        self._current = ""
        """The step that is being sent; empty: none."""
        self._since: Optional[int] = None
        """Number of the step that this start continued from, or of its first one. Of newer ones in the store only `_ours` are its own."""
        self._ours: set[str] = set()
        """Steps that this start has begun to send, on the first rank."""
        self._phase = _PREPARE
        self._again = False
        """Whether the current step was written anew since its files began to go."""
        self._work: Optional[Future[Any]] = None
        """This rank's part of the phase."""
        self._marker = b""
        """The current step's checksum file, as the first rank read it."""
        self._there: list[str] = []
        """Files of the current step that an interrupted sending brought into the store."""
        self._failures = 0
        self._due = 0.0
        self._moved = time.monotonic()
        """When this rank last sent, copied or removed something in the store, or the phase began."""
        self._idle = 0.0
        """Seconds since any rank did, at the last look."""
        self._sent: list[str] = []
        """Newest steps that this start has sent, oldest first; as many as the store keeps."""
        found: list[Path] = []
        on_first_rank(lambda: found.extend(self._left_over()))
        for folder in gather(found)[0]:
            self.add(folder)

    def _left_over(self) -> list[Path]:
        """Steps of earlier starts that may not be in the store; for the newest one the store is asked."""
        steps, unsent = atomic.complete_steps(self._directory), atomic.unsent_steps(self._directory)
        if self._steps is None:
            atomic.mark_unsent(self._directory, unsent)
            return []
        self._since = atomic.step_of(steps[-1]) if steps else None
        return [folder for folder in steps if folder.name in unsent or folder == steps[-1]]

    def add(self, folder: Path) -> None:
        """A step was published: it is sent as soon as it can be.

        Raises:
            OSError: to_store.json cannot be written.
        """
        if self._steps is None:
            return
        name = self._newest = folder.name
        self._since = atomic.step_of(folder) if self._since is None else self._since
        if name == self._current:
            self._again = True
        elif name not in self._waiting:
            self._waiting.append(name)
        self._remember()

    def advance(self) -> None:
        """Begins what can begin, and ends what is done. It waits for no store.

        Raises:
            OSError: to_store.json cannot be written.
        """
        if not self._current and not self._waiting:
            return
        told: list[_Status] = gather(self._status())
        self._idle = min(status.idle for status in told)
        if not all(status.done for status in told):
            return
        errors = [(number, status.error) for number, status in enumerate(told) if status.error]
        if errors:
            self._failed(*errors[0])
        elif self._current:
            self._next_phase(told[0].result)
        elif told[0].due:
            self._begin()

    def finish(self) -> None:
        """Waits until every step is in the store, it has failed too often, or nothing moves. Then gates and the last lines follow.

        Raises:
            OSError: to_store.json cannot be written.
        """
        if self._steps is None:
            return
        self._failures, self._due, self._idle, self._moved = 0, 0.0, 0.0, time.monotonic()
        while (self._current or self._waiting) and self._failures < LAST_TRIES and self._idle < PATIENCE:
            self.advance()
            time.sleep(_LOOK)
        if self._idle >= PATIENCE:
            self._say(f"{self._address} has not answered for {PATIENCE:g} s; the run does not wait for it any longer")
        left = _in_order([*self._waiting, self._on_its_way()])
        there = [name for name in left if (self._directory / name / atomic.CHECKSUMS).is_file()]
        gone = [name for name in left if name not in there]
        if gone:
            self._say(f"{', '.join(gone)}: pruned before they could be sent to {self._address}")
        if there:
            self._say(f"{', '.join(there)}: not in {self._address}; the next start of the same command sends it")
        if not left and self._newest and self._idle < PATIENCE and rank() == 0:
            self._send_run_files()

    def _send_run_files(self) -> None:
        """The run's small files, and the gates of the newest step and the best one; on the first rank."""
        lacks = f"the gate and the last lines of {self._directory} are not in {self._address}"
        work = _in_thread(self._run_files)
        if not wait([work], PATIENCE).done:
            self._say(f"{lacks}: it has not answered for {PATIENCE:g} s")
            return
        try:
            work.result()
        except (ValueError, OSError) as error:
            self._say(f"{lacks}: {error}")

    def _run_files(self) -> None:
        assert self._steps is not None
        for name in _in_order([self._newest, self._best()]):
            self._steps.send_run_files(self._directory / name)

    def _status(self) -> _Status:
        done = self._work is None or self._work.done()
        error = self._work.exception() if self._work is not None and done else None
        result = None if self._work is None or not done or error is not None else self._work.result()
        if error is not None and not isinstance(error, (ValueError, OSError)):
            raise error
        text = "" if error is None else str(error) or type(error).__name__
        now = time.monotonic()
        return _Status(done, text, now >= self._due, result, now - self._moved)

    def _begin(self) -> None:
        self._current = _in_order(self._waiting)[-1]
        self._waiting.remove(self._current)
        self._start(_PREPARE)

    def _start(self, phase: int) -> None:
        """This rank's part of a phase, in a thread."""
        self._phase, self._moved = phase, time.monotonic()
        self._remember()
        folder = self._directory / self._current
        leads = rank() == 0
        work: Optional[Callable[[], Any]] = None
        if phase == _PREPARE:
            self._again = False
            work = partial(self._prepare, folder) if leads else None
        elif phase == _SEND:
            work = partial(self._send, folder)
        elif leads:
            work = partial(self._complete, folder) if phase == _COMPLETE else self._prune
        self._work = None if work is None else _in_thread(work)

    def _prepare(self, folder: Path) -> Any:
        if not (folder / atomic.CHECKSUMS).is_file():
            return "pruned"
        assert self._steps is not None and self._since is not None
        set_aside_others(self._steps, folder, since=self._since, ours=self._ours)
        begun = self._steps.begin(folder)
        self._ours.add(folder.name)
        return begun or "there"

    def _send(self, folder: Path) -> None:
        """Sends what the checksum file lists for this rank. The folder is not listed: a host that does not see a file would send none."""
        assert self._steps is not None
        for name in files_of_rank(recorded_in(self._marker, folder), rank(), world()):
            if name not in self._there:
                self._steps.send(folder, name)

    def _note_move(self) -> None:
        self._moved = time.monotonic()

    def _complete(self, folder: Path) -> str:
        assert self._steps is not None
        best = self._best()
        self._steps.complete(folder, self._marker)
        return best

    def _best(self) -> str:
        """The name of the best step that is on the disk, or nothing."""
        best = atomic.kept_best(self._directory)
        return best.name if best else ""

    def _prune(self) -> None:
        assert self._steps is not None
        self._steps.prune(self._directory, self._keep)

    def _next_phase(self, result: Any) -> None:
        if self._again:  # its files are partly those of before
            self._start(_PREPARE)
        elif self._phase == _PREPARE and result == "pruned":
            self._say(f"{self._current} was pruned before it could be sent to {self._address}")
            self._ended()
        elif self._phase == _PREPARE and result == "there":
            self._failures = 0
            self._start(_PRUNE)
        elif self._phase == _PREPARE:
            self._marker, self._there = result
            self._start(_SEND)
        elif self._phase == _SEND:
            self._start(_COMPLETE)
        elif self._phase == _COMPLETE:
            tries = f", after {self._failures + 1} tries" if self._failures else ""
            self._say(f"{self._current} is in {self._address}{tries}")
            self._failures = 0
            self._sent = _in_order([*self._sent, self._current])[-self._keep :]
            if self._keep and len(self._sent) == self._keep:  # the store would prune what is older at once
                self._waiting = [name for name in self._waiting if _in_order([name, self._sent[0]])[0] != name or name == result]
            self._start(_PRUNE)
        else:
            self._ended()

    def _ended(self) -> None:
        self._current, self._work = "", None
        self._remember()

    def _failed(self, number: int, reason: str) -> None:
        self._moved, self._idle = time.monotonic(), 0.0
        if self._phase == _PRUNE:
            self._say(f"{self._current} is in {self._address}, but pruning there failed: {reason}; the next step tries it again")
            if self._again:
                self._start(_PREPARE)
            else:
                self._ended()
            return
        pause = min(_LONGEST_PAUSE, FIRST_PAUSE * 2**self._failures)
        self._failures += 1
        self._due = time.monotonic() + pause
        who = f" (rank {number})" if world() > 1 else ""
        where = self._directory / self._current
        self._say(f"{self._current} could not be sent{who}: {reason}; {where} is whole, and is tried again in {pause:g} s")
        self._waiting.append(self._current)
        self._current, self._work = "", None
        self._remember()

    def _remember(self) -> None:
        """Writes down which steps are not in the store, and which of them pruning spares, on the first rank."""
        if rank() == 0:
            unsent, current = [*self._waiting, self._on_its_way()], [self._on_its_way()]
            atomic.mark_unsent(self._directory, _in_order(unsent), spared=_in_order(unsent if self._hold else current))

    def _on_its_way(self) -> str:
        """The current step, unless it is whole in the store already."""
        return "" if self._phase == _PRUNE and not self._again else self._current


def _in_order(names: Iterable[str]) -> list[str]:
    """Names of steps, each once, oldest first; empty ones are left out."""
    return sorted(set(filter(None, names)), key=lambda name: atomic.step_of(Path(name)))


def _in_thread(work: Callable[[], Any]) -> Future[Any]:
    """Runs work in a daemon thread: a store that does not answer does not hold the end of the process."""
    future: Future[Any] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:  # noqa: BLE001  raised or told where the result is taken
            future.set_exception(error)

    threading.Thread(target=run, name="vita-store", daemon=True).start()
    return future


def _nothing(line: str) -> None:
    pass
