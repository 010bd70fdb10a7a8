"""Sends published steps to checkpoint.store behind training's back. A failure is told and tried again; it never ends a run.

Each rank sends the files that it wrote, in a thread of its own. The ranks agree between two steps of training: first rank 0 gets the place
ready, then all send, then rank 0 sends the checksum file, by which the step is whole, and prunes.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Optional

from mindspeed_vita.checkpoint.native import atomic
from mindspeed_vita.checkpoint.native.ranks import gather, on_first_rank, rank, world
from mindspeed_vita.checkpoint.native.stored_steps import StoredSteps, files_of_rank
from mindspeed_vita.config import CheckpointConfig

FIRST_PAUSE = 2.0
"""Seconds after a first failure; they double with each further one."""
_LONGEST_PAUSE = 600.0
LAST_TRIES = 5
"""Failures in a row after which the end of a run does not wait any longer."""
_LOOK = 0.1
"""Seconds between two looks while the end of a run waits."""


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
    """Of the first rank's thread: whether the step has to be sent at all, or the name of the best step."""


class Uploads:
    """The steps on their way to the store. Every method is collective.

    One step is sent at a time, the newest first; what the store would prune at once is not sent. The one that is being sent is not pruned
    from the run's folder, and with checkpoint.keep_unsent none is that waits.

    Args:
        settings: the recipe's section; without a `store` nothing is sent.
        say: prints a line, on the first rank.

    Raises:
        ValueError: the address is none, or packages are missing.
    """

    def __init__(self, settings: CheckpointConfig, say: Callable[[str], None]) -> None:
        self._directory, self._keep, self._hold = Path(settings.directory), settings.keep, settings.keep_unsent
        self._steps = StoredSteps(settings.store) if settings.store else None
        self._address = settings.store
        self._say = say if rank() == 0 else _nothing
        self._waiting: list[str] = []
        """Steps that are not in the store, but for the current one."""
        self._newest = ""
        """The run's newest published step."""
        self._current = ""
        """The step that is being sent; empty: none."""
        self._phase = 0
        self._again = False
        """Whether the current step was written anew since its files began to go."""
        self._work: Optional[Future[Any]] = None
        """This rank's part of the phase."""
        self._marker: Optional[bytes] = None  # on the first rank
        self._gone: set[str] = set()
        """Files of the current step that this rank has sent."""
        self._failures = 0
        self._due = 0.0
        self._sent: list[str] = []
        """Newest steps that this start has sent, oldest first; as many as the store keeps."""
        found: list[Path] = []
        on_first_rank(lambda: found.extend(self._left_over()))
        for folder in gather(found)[0]:
            self.add(folder)

    def _left_over(self) -> list[Path]:
        """Steps of earlier starts that may not be in the store; for the newest one the store is asked."""
        if self._steps is None:
            atomic.mark_unsent(self._directory, ())
            return []
        steps, unsent = atomic.complete_steps(self._directory), atomic.unsent_steps(self._directory)
        return [folder for folder in steps if folder.name in unsent or folder == steps[-1]]

    def add(self, folder: Path) -> None:
        """A step was published: it is sent as soon as it can be."""
        if self._steps is None:
            return
        name = self._newest = folder.name
        if name == self._current:
            self._again = True
        elif name not in self._waiting:
            self._waiting.append(name)
        self._remember()

    def advance(self) -> None:
        """Begins what can begin, and ends what is done. It waits for no store."""
        if not self._current and not self._waiting:
            return
        told: list[_Status] = gather(self._status())
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
        """Waits until every step is in the store, or it has failed too often. Then files that came late, such as a gate, follow."""
        if self._steps is None:
            return
        self._failures, self._due = 0, 0.0
        while (self._current or self._waiting) and self._failures < LAST_TRIES:
            self.advance()
            time.sleep(_LOOK)
        if self._waiting or self._current:
            left = ", ".join(_in_order([*self._waiting, self._current]))
            self._say(f"{left}: not in {self._address}; the next start of the same command sends it")
        elif self._newest and rank() == 0:
            try:
                self._steps.send_late_files(self._directory / self._newest)
            except (ValueError, OSError) as error:
                self._say(f"the gate and the last lines of {self._directory} are not in {self._address}: {error}")

    def _status(self) -> _Status:
        done = self._work is None or self._work.done()
        error = self._work.exception() if self._work is not None and done else None
        result = None if self._work is None or not done or error is not None else self._work.result()
        if error is not None and not isinstance(error, (ValueError, OSError)):
            raise error
        text = "" if error is None else str(error) or type(error).__name__
        return _Status(done, text, time.monotonic() >= self._due, result)

    def _begin(self) -> None:
        self._current = _in_order(self._waiting)[-1]
        self._waiting.remove(self._current)
        self._phase, self._gone = 0, set()
        self._remember()
        self._start()

    def _start(self) -> None:
        """This rank's part of the phase, in a thread."""
        folder = self._directory / self._current
        leads = rank() == 0
        work: Optional[Callable[[], Any]] = None
        if self._phase == 0:
            self._again = False
            work = partial(self._prepare, folder, self._newest) if leads else None
        elif self._phase == 1:
            work = partial(self._send, folder)
        elif leads:
            work = partial(self._complete, folder)
        self._work = None if work is None else _in_thread(work)

    def _prepare(self, folder: Path, newest: str) -> str:
        if not (folder / atomic.CHECKSUMS).is_file():
            return "pruned"
        assert self._steps is not None
        self._marker = self._steps.begin(folder, newest=newest)
        return "send" if self._marker is not None else "there"

    def _send(self, folder: Path) -> None:
        assert self._steps is not None
        names = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file() and path.name != atomic.CHECKSUMS]
        for name in files_of_rank(names, rank(), world()):
            if name not in self._gone:
                self._steps.send(folder, name)
                self._gone.add(name)

    def _complete(self, folder: Path) -> str:
        assert self._steps is not None and self._marker is not None
        best = atomic.best_step(self._directory)
        name = best.name if best else ""
        self._steps.complete(folder, self._marker)
        self._steps.prune(self._keep, name)
        return name

    def _next_phase(self, result: Any) -> None:
        if self._again:  # its files are partly those of before
            self._phase, self._gone = 0, set()
            self._start()
        elif self._phase == 0 and result == "pruned":
            self._say(f"{self._current} was pruned before it could be sent to {self._address}")
            self._ended()
        elif self._phase == 0 and result == "there":
            self._ended()
        elif self._phase < 2:
            self._phase += 1
            self._start()
        else:
            tries = f", after {self._failures + 1} tries" if self._failures else ""
            self._say(f"{self._current} is in {self._address}{tries}")
            self._failures = 0
            self._sent = _in_order([*self._sent, self._current])[-self._keep :]
            if self._keep and len(self._sent) == self._keep:  # the store would prune what is older at once
                self._waiting = [name for name in self._waiting if _in_order([name, self._sent[0]])[0] != name or name == result]
            self._ended()

    def _ended(self) -> None:
        self._current, self._work = "", None
        self._remember()

    def _failed(self, number: int, reason: str) -> None:
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
        """Writes down which steps pruning spares, on the first rank."""
        if rank() == 0:
            kept = [*self._waiting, self._current] if self._hold else [self._current]
            atomic.mark_unsent(self._directory, _in_order(kept))


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
