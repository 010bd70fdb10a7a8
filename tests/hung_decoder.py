"""A decoder's process that does not answer."""

from __future__ import annotations

import os
import signal
from dataclasses import replace

from mindspeed_vita.data.media.decoder import Decoder


def stop(child: Decoder) -> None:
    """Stops the process, and waits until it is: it will not answer, whatever it is asked."""
    assert child.pid is not None
    os.kill(child.pid, signal.SIGSTOP)
    os.waitpid(child.pid, os.WUNTRACED)


def hang(child: Decoder, seconds: float = 1.0) -> None:
    """As stop, and so many seconds to wait for it. The process that follows it has the usual ones."""
    usual, close = child.settings, child.close

    def closed() -> None:
        child.settings, child.close = usual, close  # type: ignore[method-assign]
        close()

    child.settings, child.close = replace(usual, seconds=seconds), closed  # type: ignore[method-assign]
    stop(child)
