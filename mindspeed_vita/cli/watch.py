"""`vita watch RUN`"""

from __future__ import annotations

import argparse
import math

from mindspeed_vita.addresses import run_folder

_EPILOG = """
examples:
  vita watch runs/stage2            (until the run is over, or Ctrl-C; the run does not notice)
  vita watch runs/stage2 --once     (prints the view and ends; for pipes and logs)

It only reads the run's files, so it works from any machine that sees the folder. docs/guides/watch_a_run.md explains the lines.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the subcommand."""
    parser.epilog = _EPILOG
    parser.add_argument("run", metavar="RUN", help="folder of a run (checkpoint.directory)")
    parser.add_argument("--every", type=float, default=2.0, metavar="SECONDS", help="time between two looks (default 2)")
    parser.add_argument("--once", action="store_true", help="print the view once and end")


def run(arguments: argparse.Namespace) -> int:
    """Shows the run."""
    if not (math.isfinite(arguments.every) and 0.1 <= arguments.every <= 3600):
        raise ValueError(f"--every is {arguments.every:g}; expected 0.1 to 3600 seconds")
    from rich.console import Console

    from mindspeed_vita.report.run_files import RunFiles
    from mindspeed_vita.report.terminal import view, watch

    console, found = Console(), RunFiles(run_folder(arguments.run))
    if arguments.once:
        found.read()
        console.print(view(found))
        return 0
    if not console.is_terminal:
        raise ValueError("standard output is no terminal; add --once to print the view once")
    try:
        watch(found, console, every=arguments.every)
    except KeyboardInterrupt:  # the way to leave
        return 0
    return 0
