"""`vita lineage PATH`"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

_EPILOG = """
examples:
  vita lineage runs/stage4                 (the newest step of a run)
  vita lineage exported --json

The first line is the checkpoint, and below it is what it was made from. A run says its step, the hash of its recipe, the fingerprint of its
data and the version of the code. Settings that were changed when the run was continued have lines of their own.
"""

CHECKPOINTS = ("checkpoint",)
"""Arguments that may be addresses in an object store; main.py fetches what they name."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the subcommand."""
    parser.epilog = _EPILOG
    parser.add_argument("checkpoint", metavar="PATH", help="run or step folder, export, or what MindSpeed-LLM saved")
    parser.add_argument("--json", action="store_true", help="print the record as JSON")


def run(arguments: argparse.Namespace) -> int:
    """Prints the history of a checkpoint."""
    from mindspeed_vita.checkpoint.lineage import of_checkpoint, tree

    folder = Path(arguments.checkpoint)
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such folder; expected a checkpoint")
    found = of_checkpoint(folder)
    print(json.dumps(found.encode(), indent=1) if arguments.json else "\n".join(tree(found)))
    return 0
