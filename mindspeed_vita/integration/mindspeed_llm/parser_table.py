"""MindSpeed-LLM's command-line parser as a table: which flags it has, and how it reads them. One table for each upstream version.

The tables are facts that scripts/upstream_flags.py reads from the real parser. With them the flags can be checked where upstream is absent.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any, NoReturn

FORMAT = 1
FOLDER = Path(__file__).with_name("upstream_flags")
PINNED = "26.1.0"
"""The supported version, whose table stands for the parser where MindSpeed-LLM is not installed."""
_SWITCHES = {"_StoreTrueAction": "store_true", "_StoreFalseAction": "store_false", "_StoreAction": "store"}
_TYPES = {"int": int, "float": float, "str": str}
_PLAIN = (type(None), bool, int, float, str)


class Parser(argparse.ArgumentParser):
    """A parser that raises where argparse would print its usage, which has 800 lines here, and exit."""

    def error(self, message: str) -> NoReturn:
        """Raises ValueError instead of exiting."""
        refuse_line(message)


def refuse_line(message: str) -> NoReturn:
    """What a parser does with a line that it cannot read.

    Raises:
        ValueError: always.
    """
    raise ValueError(f"command line: {message}; docs/mindspeed_llm_flags.md lists all flags")


def describe(parser: argparse.ArgumentParser, root: str = "") -> list[dict[str, Any]]:
    """Every flag of a parser as plain values, in the parser's order, without --help.

    Args:
        parser: with all flags registered.
        root: folder of the checkout, which is taken out of default paths.

    Raises:
        ValueError: an action is of a kind that the table cannot hold.
    """
    found = []
    for group in parser._action_groups:
        for action in group._group_actions:
            kind = type(action).__name__
            if kind == "_HelpAction":
                continue
            if kind not in _SWITCHES or not action.option_strings:
                raise ValueError(f"{action.option_strings or action.dest} is a {kind}; teach parser_table.py to describe it")
            entry: dict[str, Any] = {"flags": list(action.option_strings), "dest": action.dest, "action": _SWITCHES[kind]}
            if kind == "_StoreAction":
                name = getattr(action.type, "__name__", "str")
                entry |= {"type": name if name in _TYPES else "other", "nargs": action.nargs}
                entry["choices"] = [_plain(choice, root) for choice in action.choices] if action.choices else None
            found.append({**entry, "default": _plain(action.default, root), "group": group.title})
    return found


def _plain(value: Any, root: str) -> Any:
    """A value that JSON can hold: plain ones as they are, others by their names."""
    if isinstance(value, str) and root and value.startswith(root):
        return value.removeprefix(root).lstrip("/")
    if isinstance(value, (list, tuple)):
        return [_plain(part, root) for part in value]
    return value if isinstance(value, _PLAIN) else str(getattr(value, "name", value))


def table_text(name: str, flags: list[dict[str, Any]]) -> str:
    """A table as it is written to a file: one line for each flag."""
    lines = ",\n".join(json.dumps(entry) for entry in flags)
    return f'{{"format": {FORMAT}, "name": {json.dumps(name)}, "flags": [\n{lines}\n]}}\n'


def read_table(path: Path) -> list[dict[str, Any]]:
    """The flags of a table.

    Raises:
        ValueError: not a table of this format.
    """
    content = json.loads(path.read_text(encoding="utf-8"))
    if content.get("format") != FORMAT:
        raise ValueError(f"{path}: expected a table of format {FORMAT}; write it again with scripts/upstream_flags.py")
    return content["flags"]


def tables() -> dict[str, Path]:
    """Version -> file."""
    return {path.stem: path for path in sorted(FOLDER.glob("*.json"))}


def build_parser(name: str = PINNED) -> Parser:
    """A parser that reads flags as upstream's does. Values that are neither numbers nor text stay text.

    Args:
        name: of the table.
    """
    parser = Parser(prog="MindSpeed-LLM", allow_abbrev=False, add_help=False)
    for entry in read_table(FOLDER / f"{name}.json"):
        more: dict[str, Any] = {}
        if entry["action"] == "store":
            # other types are upstream's own functions, so their choices are not the words on the command line
            other = entry["type"] == "other"
            more = {"type": _TYPES.get(entry["type"]), "nargs": entry["nargs"], "choices": None if other else entry["choices"]}
        parser.add_argument(*entry["flags"], dest=entry["dest"], action=entry["action"], default=entry["default"], **more)
    return parser
