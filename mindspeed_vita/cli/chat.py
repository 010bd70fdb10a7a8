"""`vita chat CHECKPOINT`"""

from __future__ import annotations

import argparse
import sys

from mindspeed_vita.cli.answering import add_checkpoint_arguments, add_sampling_arguments, check_checkpoint, open_session, sampling

_EPILOG = """
examples:
  vita chat runs/stage4
  vita chat exported --temperature 0.7
  torchrun --nproc_per_node 4 -m mindspeed_vita.cli.main chat runs/stage4 --tp 2 --cp 2

Commands inside: /image FILE, /video FILE, /reset, /save FILE, /help, /quit. What was said and shown stays in the cache, so a further
question costs its own tokens only. Ctrl-C stops an answer at the end of its step; a second one ends the chat at once.
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

        chat = Chat(RequestLoop(session, prefill_tokens=arguments.prefill_chunk), params, show)
        print(HELP, file=sys.stderr, flush=True)
        while (line := _read()) is not None and chat.line(line):
            pass
        session.dismiss()
    else:
        session.serve()
    shutdown()
    return 0


def _read() -> str | None:
    """The next line, or None at the end of the input."""
    if sys.stdin.isatty():
        print("> ", end="", file=sys.stderr, flush=True)
    line = sys.stdin.readline()
    return line or None
