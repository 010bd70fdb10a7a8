"""A small process that ends another one which has shown no sign of life for too long, although a library keeps its interpreter.

It is a program of its own, and imports nothing of the package. A timer inside the watched process cannot tell a process that hangs from one
that was suspended, by Ctrl-Z or by a scheduler, and now goes on. This one sees who is stopped.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Optional

_LOOK = 2.0
"""Seconds between two looks."""
_DIES = 10.0
"""Seconds that a process has to print its stacks."""


class Guard:
    """Guards this process.

    Args:
        seconds: without a sign of life, after which it is ended by SIGABRT. Time in which it is suspended does not count.
    """

    def __init__(self, seconds: float) -> None:
        command = [sys.executable, "-I", "-S", __file__, str(os.getpid()), str(seconds)]
        nothing = subprocess.DEVNULL
        # a group of its own: Ctrl-C is not for it
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=nothing, stderr=nothing, start_new_session=True)
        assert self._process.stdin is not None
        self._pipe: Optional[int] = self._process.stdin.fileno()
        os.set_blocking(self._pipe, False)
        os.register_at_fork(after_in_child=self._forget)

    def beat(self) -> None:
        """A sign of life."""
        with suppress(BlockingIOError, BrokenPipeError):  # it has enough to read, or was killed
            if self._pipe is not None:
                os.write(self._pipe, b".")

    def close(self) -> None:
        """Nothing is guarded any more."""
        self._forget()
        self._process.terminate()
        self._process.wait()

    def _forget(self) -> None:
        """Also in a forked process, such as a loader's: its copy of the pipe would outlive this one."""
        assert self._process.stdin is not None
        self._pipe = None
        self._process.stdin.close()


def main(process: int, seconds: float) -> None:
    """Reads signs of life from standard input until the process ends, or has to be ended."""
    silence, looked, pause = 0.0, time.monotonic(), min(_LOOK, seconds / 5)
    while os.getppid() == process:
        signs = select.select([0], [], [], pause)[0]
        now = time.monotonic()
        if signs:
            if not os.read(0, 65536):
                return
            silence = 0.0
        elif not _is_stopped(process):
            silence += min(now - looked, 2 * pause)  # this process may have been stopped, too
        looked = now
        if silence > seconds:
            os.kill(process, signal.SIGABRT)  # faulthandler prints the stacks, without the interpreter
            time.sleep(_DIES)
            if os.getppid() == process:
                os.kill(process, signal.SIGKILL)
            return


def _is_stopped(process: int) -> bool:
    """Whether a signal has stopped a process, as far as the system says so."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] in ("T", "t")
    except OSError:  # it is gone, or there is no such folder
        return False


if __name__ == "__main__":
    main(int(sys.argv[1]), float(sys.argv[2]))
