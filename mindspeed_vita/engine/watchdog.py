"""Notices that a run hangs or has lost a process, writes down what its processes are doing, and ends them.

The parts: a thread that counts the time since the last step (here), the connections between the ranks (lifeline.py), the stacks
(stacks.py) and the end (leaving.py).
"""

from __future__ import annotations

import faulthandler
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import ContextManager, Optional

import torch.distributed as dist

from mindspeed_vita.checkpoint.native.atomic import nothing
from mindspeed_vita.checkpoint.native.step_folder import latest
from mindspeed_vita.config import Recipe
from mindspeed_vita.engine.faults import TrainingDiverged
from mindspeed_vita.engine.guard import Guard
from mindspeed_vita.engine.leaving import Leaving
from mindspeed_vita.engine.lifeline import Lifeline
from mindspeed_vita.engine.stacks import add_to, describe_process
from mindspeed_vita.engine.stopping import Stopped, where_it_continues

HUNG = 76
"""Exit status: no step ended for health.hang_minutes. SIGABRT ends a process whose interpreter is held by a library for that long."""
STACKS = "hang_stacks.txt"
"""File in the run's folder."""
_LOOK = 2.0
"""Seconds between two looks at the clock."""
_ANSWERS = 40.0
"""Seconds in which every rank writes its stacks."""
_WITHOUT_PYTHON = 120.0
"""Seconds after the limit at which a process that runs no Python any more is ended by its guard."""


Beat = Callable[[], None]
"""To be called at each sign of progress."""
WatchedSteps = Callable[[], ContextManager[Beat]]
"""A block in which a hang is looked for."""


class Watchdog:
    """Counts the time since the last sign of progress of this rank. Time in which the process was suspended does not count.

    Args:
        seconds: longest time without one; 0: any.
        hung: called once, in the watchdog's thread.
    """

    def __init__(self, seconds: float, hung: Callable[[], None]) -> None:
        self._seconds, self._hung = seconds, hung
        self._silence = 0.0
        self._ended = threading.Event()
        self._guard: Optional[Guard] = None
        if seconds:
            # a library that keeps the interpreter to itself stops the thread below, too
            faulthandler.enable(file=2)
            self._guard = Guard(seconds + _WITHOUT_PYTHON)
            threading.Thread(target=self._watch, name="vita-watchdog", daemon=True).start()

    def beat(self) -> None:
        """There was progress."""
        self._silence = 0.0
        if self._guard is not None:
            self._guard.beat()

    def close(self) -> None:
        """The work is done."""
        self._ended.set()
        if self._guard is not None:
            self._guard.close()

    def _watch(self) -> None:
        looked, pause = time.monotonic(), min(_LOOK, self._seconds / 5)
        while not self._ended.wait(pause):
            now = time.monotonic()
            self._silence += min(now - looked, 2 * pause)  # more than that: this process was suspended
            looked = now
            if self._silence > self._seconds:
                self._hung()
                return


class _Hang:
    """What the ranks of a run do when one of them hangs: all write their stacks, then all end."""

    def __init__(self, recipe: Recipe, leave: Leaving, newest: Callable[[Path], Optional[Path]]) -> None:
        self._newest = newest
        self.minutes = recipe.health.hang_minutes
        self.directory = Path(recipe.checkpoint.directory)
        self.rank, self.world = dist.get_rank(), dist.get_world_size()
        self.leave = leave
        self.lifeline: Optional[Lifeline] = None
        self._once = threading.Lock()
        self._written: set[int] = set()

    def hung(self) -> None:
        """This rank's watchdog found out, or another rank's."""
        if not self._once.acquire(blocking=False):
            return
        if self.lifeline is not None:
            self.lifeline.say("hung")
        self._write()
        self._written.add(self.rank)
        speaks = self.rank == 0 or (self.lifeline is not None and self.lifeline.speaks_of(0))
        if self.lifeline is not None and self.rank:
            self.lifeline.say("stacks")
            # the first rank says "leave" before that, unless it is the one that hangs; then others speak for it
            time.sleep(_ANSWERS + (5.0 if speaks else 10.0))
        else:
            deadline = time.monotonic() + _ANSWERS
            while len(self._written) < self.world and time.monotonic() < deadline:
                time.sleep(0.2)
        line = self._line() if speaks else ""
        if self.lifeline is not None and self.rank == 0:
            self.lifeline.say(f"leave {HUNG}")
        self.leave(HUNG, line)

    def heard(self, rank: int, word: str) -> None:
        """A word of another rank: it hangs, or it has written its stacks. A rank that hangs never ends the thread that hears."""
        if word == "stacks":
            self._written.add(rank)
        elif word == "hung":
            threading.Thread(target=self.hung, daemon=True).start()

    def _write(self) -> None:
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            add_to(self.directory / STACKS, describe_process(f"rank {self.rank} of {self.world}"))
        except OSError as error:
            print(f"vita: {self.directory / STACKS} cannot be written ({error}); the stacks follow", file=sys.stderr, flush=True)
            faulthandler.dump_traceback(file=2, all_threads=True)

    def _line(self) -> str:
        silent = [rank for rank in range(self.world) if rank not in self._written]
        name = self.lifeline.name if self.lifeline is not None else str
        if self.rank:
            where = f"{name(0)} does not answer, so the others end without it; their stacks are in"
        elif silent:
            shown = ", ".join(name(rank) for rank in silent[:8]) + (f" and {len(silent) - 8} more" if len(silent) > 8 else "")
            where = f"no answer from {shown}: stopped, or its host is gone; the stacks of the others are in"
        else:
            where = "the stacks of all processes are in"
        rest = where_it_continues(self._newest(self.directory))
        return f"vita: error: no step ended for {self.minutes:g} minutes (health.hang_minutes); {where} {self.directory / STACKS}; {rest}"


@contextmanager
def watched(
    recipe: Recipe, *, own: bool, release: Callable[[], None], newest: Callable[[Path], Optional[Path]] = latest
) -> Iterator[WatchedSteps]:
    """Ends this process where another one of the run ends without a word, or the run hangs. For the block.

    Args:
        recipe: the run.
        own: whether the process group is this run's. Otherwise the processes belong to a caller, and nothing is watched.
        release: gives the run's lock back; called before the process is ended.
        newest: the newest checkpoint in the run's folder, for the message.

    Yields:
        A context manager for the steps.
    """
    if not own:
        yield lambda: nullcontext(nothing)
        return
    leave = Leaving(release)
    hang = _Hang(recipe, leave, newest)
    if hang.world > 1:
        store = dist.distributed_c10d._get_default_store()
        hang.lifeline = Lifeline(hang.rank, hang.world, store, leave, hang.heard, lost_after=recipe.health.lost_host_seconds)

    @contextmanager
    def steps() -> Iterator[Beat]:
        watchdog = Watchdog(60 * recipe.health.hang_minutes, hang.hung)
        try:
            yield watchdog.beat
        finally:
            watchdog.close()

    try:
        yield steps
    except BaseException as error:
        if hang.lifeline is not None:
            known = isinstance(error, (ValueError, OSError, TrainingDiverged, Stopped, KeyboardInterrupt))
            hang.lifeline.failed(_status(error) if known else 1, broken=not known)
        raise
    if hang.lifeline is not None:
        hang.lifeline.close()


def _status(error: BaseException) -> int:
    """What cli/main.py ends with."""
    return 128 + error.number if isinstance(error, Stopped) else 130 if isinstance(error, KeyboardInterrupt) else 2
