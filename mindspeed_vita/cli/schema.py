"""`vita schema`: prints the JSON schema of a recipe, with which editors complete and check recipe files."""

from __future__ import annotations

import argparse
import json

_EPILOG = """
example:
  vita schema > recipe.schema.json

VS Code with the YAML extension (redhat.vscode-yaml) uses the file for a recipe that begins with this line:

  # yaml-language-server: $schema=recipe.schema.json

The path is relative to the recipe. docs/recipe_keys.md shows how to name the recipes in VS Code's settings instead.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the subcommand."""
    parser.epilog = _EPILOG


def run(arguments: argparse.Namespace) -> int:
    """Print it."""
    from mindspeed_vita.config.schema import recipe_schema

    print(json.dumps(recipe_schema(), indent=2))
    return 0
