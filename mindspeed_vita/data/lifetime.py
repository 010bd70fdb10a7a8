"""A helper process ends with the process it works for, however that one ends."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
from typing import Optional

_PR_SET_PDEATHSIG = 1


def live_no_longer_than(parent: Optional[int] = None) -> None:
    """Ties this process to its parent (Linux: by signal), and leaves Ctrl-C and SIGUSR1 to it.

    Args:
        parent: process id of the parent; ends this process at once if that is no longer it. None: not looked at.
    """
    _leave_to_parent()
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if parent is not None and os.getppid() != parent:
        os._exit(1)


def end_by_parent_alone() -> None:
    """SIGTERM ends this process where its parent sent it, and nowhere else; nor do Ctrl-C and SIGUSR1.

    torchrun and schedulers send SIGTERM to every process of a run, which then finishes its step and still needs its helpers. Call it
    before this process starts threads.
    """
    _leave_to_parent()
    parent = os.getppid()
    # blocked for threads to come as well, so that the one below sees who sent it
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})

    def wait() -> None:
        while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
            pass
        os._exit(0)

    threading.Thread(target=wait, name="vita-sigterm", daemon=True).start()


def _leave_to_parent() -> None:
    for number in (signal.SIGINT, signal.SIGUSR1):  # a scheduler may send the second to every process of a job
        signal.signal(number, signal.SIG_IGN)
