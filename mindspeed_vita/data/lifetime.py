"""A helper process ends with the process it works for, however that one ends."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from typing import Optional

_PR_SET_PDEATHSIG = 1


def live_no_longer_than(parent: Optional[int] = None) -> None:
    """Ties this process to its parent (Linux: by signal), and leaves Ctrl-C to it.

    Args:
        parent: process id of the parent; ends this process at once if that is no longer it. None: not looked at.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if parent is not None and os.getppid() != parent:
        os._exit(1)
