"""`vita eval choice`: how good a model is."""

from __future__ import annotations

import argparse

from mindspeed_vita.cli import evaluate_choice

ACTIONS = {
    "choice": ("answer the multiple-choice and open questions of a benchmark's file", evaluate_choice.add_arguments),
}


def run(arguments: argparse.Namespace) -> int:
    """Run one action."""
    actions = {"choice": evaluate_choice.run}
    return actions[arguments.action](arguments)
