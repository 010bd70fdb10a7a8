"""torchrun with an exit status that a scheduler can read: that of the first process of the run which ended with one.

    python -m mindspeed_vita.cli.torchrun --standalone --nproc_per_node 8 -m mindspeed_vita.cli.main train RECIPE

torchrun alone ends with 1 whatever its processes ended with, SIGUSR1 ends it without a word to them, and 30 s after any signal it kills
those that are not done. Arguments are torchrun's own.
"""

from __future__ import annotations

import os
import signal
import sys
import tempfile
from pathlib import Path
from types import FrameType
from typing import Optional

from mindspeed_vita.engine.stopping import STATUS_FILE

_WAIT = "TORCH_ELASTIC_SHUTDOWN_TIMEOUT"
"""Seconds between a signal and the kill, in releases of torch that read it (2.13 does; 2.7.1 does not, and kills after 30 s)."""
_LONGEST_END = "1800"
"""Half an hour for the step, its save and the store. A scheduler that has less patience kills by itself."""


def main() -> int:
    """Runs torchrun with this process's arguments; the status of the run's first process that failed or stopped, else torchrun's own."""
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import main as torchrun

    os.environ[_WAIT] = os.environ.get(_WAIT) or _LONGEST_END  # an empty one would end torchrun with a traceback
    with tempfile.TemporaryDirectory(prefix="vita_torchrun_") as folder:
        told = Path(folder) / "status"
        os.environ[STATUS_FILE] = str(told)
        signal.signal(signal.SIGUSR1, _pass_on)
        try:
            torchrun()
        except (ChildFailedError, SignalException) as error:
            of_starts = sorted(told.parent.glob(f"{told.name}.*"))
            if of_starts:
                return int(of_starts[-1].read_text())
            if isinstance(error, ChildFailedError):
                raise
            # the signal came before the processes could say anything
            print(f"vita: torchrun was ended by {signal.Signals(error.sigval).name}", file=sys.stderr, flush=True)
            return 128 + error.sigval
    return 0


def _pass_on(number: int, frame: Optional[FrameType]) -> None:
    """torchrun hands SIGTERM on to its processes, which treat both signals alike; not every release lets us add a signal to its list."""
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    sys.exit(main())
