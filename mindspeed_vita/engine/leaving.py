"""The end of a process whose main thread may wait for others for ever."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable
from typing import NoReturn

from mindspeed_vita.engine.stopping import report_status

_ORDER = 10.0
"""Seconds for putting things in order."""
_READ = 1.0
"""Seconds for whoever collects the output, before launchers see the end of this process and end the others."""


class Leaving:
    """Ends this process, from any thread; only the first caller's words and status count.

    Args:
        before: what is to be put in order, such as a lock file. It may hang, as file systems do; then it is left behind.
    """

    def __init__(self, before: Callable[[], None]) -> None:
        self._before = before
        self._first = threading.Lock()

    def __call__(self, status: int, line: str) -> NoReturn:
        """Prints a line, if there is one, and ends the process with a status."""
        self._first.acquire()  # for good: this process ends
        report_status(status)  # first: a launcher that sees what happened sends SIGTERM meanwhile, which has a status of its own
        order = threading.Thread(target=self._before, daemon=True)
        order.start()
        order.join(_ORDER)
        if line:
            print(line, file=sys.stderr, flush=True)
            time.sleep(_READ)
        os._exit(status)
