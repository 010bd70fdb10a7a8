"""`vita completion bash|zsh|fish`: prints a script with which the shell completes commands, options and file names. Needs shtab."""

from __future__ import annotations

import argparse
from typing import Any

_EPILOG = """
With .venv active, in ~/.bashrc, ~/.zshrc or ~/.config/fish/config.fish:

  eval "$(vita completion bash)"
  eval "$(vita completion zsh)"
  vita completion fish | source

The package shtab makes the script: pip install -e '.[completion]'
"""
SHELLS = ("bash", "zsh", "fish")
_FILES = ("FILE", "PATH", "SOURCE", "CHECKPOINT", "recipe")
_FOLDERS = ("DIR", "FOLDER")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the subcommand."""
    parser.epilog = _EPILOG
    parser.add_argument("shell", choices=SHELLS, help="shell to print the script for")


def run(arguments: argparse.Namespace) -> int:
    """Print the script."""
    try:
        import shtab
    except ModuleNotFoundError as error:
        raise ValueError("the package shtab, which makes the script, is not installed; run: pip install -e '.[completion]'") from error
    print(shtab.complete(_tree(shtab.FILE, shtab.DIRECTORY), arguments.shell))
    return 0


def _tree(files: Any, folders: Any) -> argparse.ArgumentParser:
    """One parser with every command and action below it."""
    from mindspeed_vita.cli.main import COMMANDS, actions_of, add_arguments

    root = argparse.ArgumentParser(prog="vita")
    commands = root.add_subparsers()
    for name, (_, line) in COMMANDS.items():
        command = commands.add_parser(name, help=line)
        actions = actions_of(name)
        if not actions:
            add_arguments(command, name)
            _complete_paths(command, files, folders)
            continue
        below = command.add_subparsers()
        for action, action_line in actions.items():
            leaf = below.add_parser(action, help=action_line)
            add_arguments(leaf, name, action)
            _complete_paths(leaf, files, folders)
    return root


def _complete_paths(parser: argparse.ArgumentParser, files: Any, folders: Any) -> None:
    for argument in parser._actions:
        named = argument.metavar or argument.dest
        if named in (*_FILES, *_FOLDERS):
            argument.complete = folders if named in _FOLDERS else files  # type: ignore[attr-defined]
