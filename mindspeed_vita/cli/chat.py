"""`vita chat CHECKPOINT`"""

from __future__ import annotations

import argparse
import os
import select
import signal
import sys
from collections import deque
from typing import Optional, TextIO

from mindspeed_vita.cli.answering import add_checkpoint_arguments, add_sampling_arguments, check_checkpoint, open_session, sampling
from mindspeed_vita.data.media.pipes import wait_for

_EPILOG = """
examples:
  vita chat runs/stage4
  vita chat exported --temperature 0.7
  torchrun --nproc_per_node 4 -m mindspeed_vita.cli.main chat runs/stage4 --tp 2 --cp 2

Commands inside: /image FILE, /video FILE, /reset, /save FILE, /help, /quit. What was said and shown stays in the cache, so a further
question costs its own tokens only. Enter stops an answer at the end of its step. So does Ctrl-C, and a second one ends the chat at once;
but torchrun ends all its processes at the first one.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the subcommand."""
    parser.epilog = _EPILOG
    add_checkpoint_arguments(parser)
    add_sampling_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """Talk until the input ends."""
    from mindspeed_vita.config import import_plugins
    from mindspeed_vita.engine.session import rank, shutdown

    import_plugins(arguments.plugin, "--plugin")
    params, checkpoint = sampling(arguments), check_checkpoint(arguments)
    if rank() == 0:
        print(f"loading {checkpoint}", file=sys.stderr, flush=True)
    session = open_session(arguments)
    if session.ranks.first:
        from mindspeed_vita.inference.chat import HELP, Chat
        from mindspeed_vita.inference.request_loop import RequestLoop

        def show(text: str) -> None:
            print(text, end="", flush=True)

        with session.leading():
            lines, loop = TypedLines(sys.stdin), RequestLoop(session, prefill_tokens=arguments.prefill_chunk)
            chat = Chat(loop, params, show, stopped=lines.entered, ends_by_interrupt="TORCHELASTIC_RUN_ID" in os.environ)
            print(HELP, file=sys.stderr, flush=True)
            while (line := lines.read()) is not None and chat.line(line):
                pass
    else:
        # The first process says when to end; a terminal and a launcher send the signal to all of them.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        session.serve()
    shutdown()
    return 0


class TypedLines:
    """The user's lines, and whether one came while an answer is shown.

    Args:
        source: where they come from. What comes early from a pipe or file waits for its turn; it stops nothing.
    """

    def __init__(self, source: TextIO) -> None:
        self._source, self._early = source, deque[str]()

    def read(self) -> Optional[str]:
        """The next line, or None at the end of the input."""
        if self._early:
            return self._early.popleft() or None
        if self._source.isatty():
            print("> ", end="", file=sys.stderr, flush=True)
        return self._source.readline() or None

    def entered(self) -> bool:
        """Whether the user of a terminal pressed Enter on an empty line. Other lines are kept for `read`."""
        while self._source.isatty() and "" not in self._early and wait_for(self._source.fileno(), select.POLLIN, 0):
            line = self._source.readline()
            if line.strip() == "" != line:
                return True
            self._early.append(line)
        return False
