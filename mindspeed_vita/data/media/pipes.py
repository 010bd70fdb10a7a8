"""Reading and writing pipes with a deadline."""

from __future__ import annotations

import math
import os
import select
import time
from contextlib import suppress
from typing import Any


def wait_for(pipe: int, event: int, seconds: float) -> bool:
    """Waits until a pipe is ready or its other side is gone; False where neither comes in time."""
    # not select.select, which refuses descriptors above 1,023
    waiter = select.poll()
    waiter.register(pipe, event)
    return bool(waiter.poll(math.ceil(1000 * seconds)))


def read_into(pipe: int, into: Any, deadline: float) -> Any:
    """Fills a buffer from a pipe.

    Raises:
        TimeoutError: the deadline passed.
        EOFError: the other side is gone.
    """
    view, done = memoryview(into), 0
    while done < len(view):
        left = deadline - time.monotonic()
        if left <= 0 or not wait_for(pipe, select.POLLIN, left):
            raise TimeoutError
        count = os.readv(pipe, [view[done:]])
        if not count:
            raise EOFError
        done += count
    return into


def write_all(pipe: int, content: bytes, deadline: float) -> None:
    """Writes all to a pipe that does not block.

    Raises:
        TimeoutError: the deadline passed.
        BrokenPipeError: the other side is gone.
    """
    view = memoryview(content)
    while view:
        left = deadline - time.monotonic()
        if left <= 0 or not wait_for(pipe, select.POLLOUT, left):
            raise TimeoutError
        with suppress(BlockingIOError):
            view = view[os.write(pipe, view) :]
