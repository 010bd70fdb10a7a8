"""`vita report RUN [RUN...] --output page.html`"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from mindspeed_vita.addresses import run_folder

_EPILOG = """
examples:
  vita report runs/stage2 --output stage2.html
  vita report runs/stage1 runs/stage2 runs/stage3 --output stages.html    (compares them, and shows where one starts from another)

The page is one file without scripts, and it loads nothing. It can be written while the run goes.
docs/guides/watch_a_run.md shows it.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the subcommand."""
    parser.epilog = _EPILOG
    parser.add_argument("runs", nargs="+", metavar="RUN", help="folder of a run (checkpoint.directory)")
    parser.add_argument("--output", required=True, metavar="FILE.html", help="the page; one that is there is replaced")


def run(arguments: argparse.Namespace) -> int:
    """Writes the page."""
    output, folders = Path(arguments.output), [run_folder(name) for name in arguments.runs]
    if output.suffix not in (".html", ".htm"):
        raise ValueError(f"--output {output}: the page is HTML; name a file that ends in .html")
    if not output.parent.is_dir():
        raise ValueError(f"--output {output}: no folder {output.parent}; make it first")
    resolved = [folder.resolve() for folder in folders]
    twice = [str(folder) for place, folder in enumerate(folders) if resolved[place] in resolved[:place]]
    if twice:
        raise ValueError(f"{twice[0]} is named twice; name each run once")

    from mindspeed_vita.report.page import write_page
    from mindspeed_vita.report.run_files import RunFiles

    runs = [RunFiles(folder) for folder in folders]
    for one in runs:
        one.read()
    write_page(runs, output)
    for note in (note for one in runs for note in one.notes):
        print(f"vita report: {note}", file=sys.stderr)
    print(output)
    return 0
