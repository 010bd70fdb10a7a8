"""`vita eval ACTION`: measures of a model, an action each; a file each has its arguments and its work."""

from __future__ import annotations

import argparse

from mindspeed_vita.cli import evaluate_loss

ACTIONS = {
    "loss": ("held-out loss and token accuracy, of a checkpoint of any format", evaluate_loss.add_arguments),
}
_RUN = {"loss": evaluate_loss.run}


def run(arguments: argparse.Namespace) -> int:
    """Run one action."""
    return _RUN[arguments.action](arguments)
