"""A command line that trains, and what the table of MindSpeed-LLM's parser makes of it."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from mindspeed_vita.config import recipe_from_dict
from mindspeed_vita.integration.mindspeed_llm.arguments import arguments_from_recipe, register
from mindspeed_vita.integration.mindspeed_llm.parser_table import PINNED, Parser, build_parser

CONTENT: dict[str, Any] = {"stage": 2, "model": {"preset": "14b"}, "parallel": {"tp": 8}, "data": {"mixture": "m.yaml"}}


def good_line(**sections: Any) -> list[str]:
    """What a recipe becomes; `--load` names a folder that does not exist."""
    return arguments_from_recipe(recipe_from_dict({**CONTENT, **sections}))


def parsed(line: Sequence[str], name: str = PINNED) -> tuple[Parser, argparse.Namespace]:
    """The parser of one version, and the line as it reads it."""
    parser = build_parser(name)
    register(parser)
    arguments = parser.parse_args(list(line))
    arguments.rank, arguments.world_size = 0, 8
    return parser, arguments
