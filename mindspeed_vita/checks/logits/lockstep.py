"""Two forward passes side by side: each pass waits at every point until the other one has come there, too."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator
from queue import SimpleQueue
from typing import Optional

import torch

Tell = Callable[[str, torch.Tensor], Optional[torch.Tensor]]
"""Told the name of a point of the model, and the values there [rows, width]. Returns what the pass goes on with; None: with its own."""
Lane = Generator[tuple[str, torch.Tensor], Optional[torch.Tensor], None]
"""Points of a pass; what is sent back is what the pass goes on with."""


class _Stopped(BaseException):
    """Ends a pass that nobody waits for any longer."""


def points(work: Callable[[Tell], None], name: str) -> Lane:
    """What a pass tells, as a generator. The pass runs in a thread of its own, and only while the next point is asked for.

    `send` asks for it, too, and says what the pass goes on with.

    Args:
        work: the pass; it runs without gradients.
        name: of the thread.

    Raises:
        Whatever the pass raises, at its place.
    """
    told: SimpleQueue[Optional[tuple[str, torch.Tensor]]] = SimpleQueue()
    replies: SimpleQueue[Optional[torch.Tensor]] = SimpleQueue()
    stopped = threading.Event()
    errors: list[BaseException] = []

    def wait() -> Optional[torch.Tensor]:
        reply = replies.get()
        if stopped.is_set():
            raise _Stopped
        return reply

    def tell(point: str, values: torch.Tensor) -> Optional[torch.Tensor]:
        told.put((point, values))
        return wait()

    def run() -> None:
        try:
            wait()
            with torch.no_grad():
                work(tell)
        except _Stopped:
            pass
        except BaseException as error:  # noqa: BLE001  raised where the point is asked for
            errors.append(error)
        finally:
            told.put(None)

    thread = threading.Thread(target=run, name=name, daemon=True)
    thread.start()
    reply: Optional[torch.Tensor] = None
    try:
        while True:
            replies.put(reply)
            point = told.get()
            if point is None:
                if errors:
                    raise errors[0]
                return
            reply = yield point
    finally:
        stopped.set()
        replies.put(None)
        thread.join()
