"""`vita eval ACTION`: which actions there are. Each has a module of its own."""

from __future__ import annotations

import argparse

from mindspeed_vita.cli import evaluate_choice, evaluate_loss, evaluate_needle

ACTIONS = {
    "loss": ("held-out loss and token accuracy, of a checkpoint of any format", evaluate_loss.add_arguments),
    "needle": ("find coloured shapes at any depth of long films, or make rows that teach it", evaluate_needle.add_arguments),
    "choice": ("answer the multiple-choice and open questions of a benchmark's file", evaluate_choice.add_arguments),
}
_RUN = {"loss": evaluate_loss.run, "needle": evaluate_needle.run, "choice": evaluate_choice.run}


def run(arguments: argparse.Namespace) -> int:
    """Run one action."""
    return _RUN[arguments.action](arguments)
