"""How a run ends when it is told to: a first stop signal lets it finish its step and save, a second one ends it at once."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Iterator, Optional

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
"""Stop signals. Schedulers send SIGUSR1 some time before they end a job (Slurm's --signal)."""
SAVED = os.EX_TEMPFAIL
"""Exit status, 75: the run was told to stop, finished its step and saved it. The same command continues."""


STATUS_FILE = "VITA_STATUS_FILE"
"""Environment variable: where the first process of this host that does not end with 0 leaves its exit status, for cli/torchrun.py.

Each start of the processes has a file of its own, with the number of the start behind the name."""


def report_status(status: int) -> None:
    """Leaves this process's exit status for the launcher. The first one stays; 0, and a process without our launcher, leave none."""
    path = os.environ.get(STATUS_FILE)
    if not path or not status:
        return
    attempt = f"{path}.{int(os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')):06d}"
    own = Path(f"{path}-{os.getpid()}")
    with suppress(OSError):  # another process was first, or the launcher is gone
        own.write_text(str(status))
        try:
            os.link(own, attempt)  # whole at once, and never in the place of another
        finally:
            own.unlink()


def where_it_continues(newest: Optional[Path]) -> str:
    """The end of a message about a run that ended early. `newest`: its newest checkpoint."""
    return f"the same command continues from {newest}" if newest else "no checkpoint was written yet"


class Stopped(BaseException):
    """A stop signal ended the run at once. Like KeyboardInterrupt not an Exception: nothing on the way may take it for a failure."""

    def __init__(self, number: int, message: str = "") -> None:
        self.number = number
        super().__init__(message or signal.Signals(number).name)


@contextmanager
def saying_where(newest: Callable[[], Optional[Path]]) -> Iterator[None]:
    """Adds to a `Stopped` of the block what the run's newest checkpoint is."""
    try:
        yield
    except Stopped as stopped:
        raise Stopped(stopped.number, f"stopped by {stopped}; {where_it_continues(newest())}") from None


class StopRequest:
    """What this process was told, and what all ranks agreed on.

    Signals reach the ranks of a run at different moments, or only one of them. So no rank stops by itself: the small all-reduce at
    the end of each step carries `asked`, and every rank stops after the step in which `agreed` is set.
    """

    def __init__(self) -> None:
        self.asked = 0
        """Number of the signal that this process received; 0: none."""
        self.agreed = 0
        """Highest number that any rank had received at the end of the last step; the same on every rank."""
        self.save_asked = False
        """Whether this rank wants the step saved that is being trained: the time of checkpoint.save_minutes has passed."""
        self.save_agreed = False
        """Whether any rank wanted that at the end of the last step; the same on every rank."""
        self.writing_asked = False
        """Whether this rank's background save goes on."""
        self.writing_agreed = False
        """Whether that of any rank did at the end of the last step; the same on every rank."""
        self.finishing = False
        """Whether there is a step to finish and to save."""

        self.bad_asked = 0
        """What this rank found wrong with the numbers of the step, before its update (bad_numbers.py); 0: nothing."""
        self.bad_agreed = 0
        """The highest of all ranks; the same on every rank."""

    @contextmanager
    def finishing_steps(self) -> Iterator[None]:
        """Inside the block a first signal is only noted, as there is a step to finish and to save. Elsewhere it ends the run at once."""
        self.finishing = True
        try:
            yield
        finally:
            self.finishing = False

    def receive(self, number: int) -> None:
        """Handles one signal.

        Raises:
            Stopped: there is no step to finish, or this is the second signal.
        """
        # once the ranks agreed, the signal that comes late to this one is still the same request
        if (self.finishing or self.agreed) and not self.asked:
            self.asked = number
            if os.environ.get("RANK", "0") == "0":
                line = f"vita: {signal.Signals(number).name}: the run finishes its step, saves and ends; a second signal ends it at once\n"
                with suppress(OSError):  # the terminal may be gone
                    os.write(2, line.encode())  # not print: the handler may have interrupted one
            return
        # The same signal may have ended the loader's workers; torch would report that as their crash.
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        raise Stopped(number)


@contextmanager
def stop_signals() -> Iterator[StopRequest]:
    """Stop signals go to the request that the block is given. Where handlers cannot be set (not the main thread), nothing changes."""
    request = StopRequest()
    owner = os.getpid()

    def stop(number: int, frame: Optional[FrameType]) -> None:
        if os.getpid() == owner:
            request.receive(number)
        elif not request.finishing:  # a worker that was just forked, and has no handlers of its own yet: it ends without a word
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)

    try:
        previous = {number: signal.signal(number, stop) for number in SIGNALS}
    except ValueError:  # not the main thread: whoever owns it handles signals
        yield request
        return
    try:
        yield request
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
