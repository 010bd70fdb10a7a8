"""What becomes of every flag of MindSpeed-LLM's parser: honoured, refused, or without effect. The table is upstream_flags/verdicts.toml."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from mindspeed_vita.integration.mindspeed_llm.parser_table import FOLDER, tables

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

HONOURED, REFUSED, NO_EFFECT = "honoured", "refused", "no effect"


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What this package does with a group of flags."""

    title: str
    """Section of the page that lists all flags."""
    verdict: str
    """honoured | refused | no effect."""
    flags: tuple[str, ...]
    why: str
    """honoured: what the flag does, or why other values are refused. refused and no effect: the reason."""
    use: str = ""
    """What to do instead."""
    only: tuple[Any, ...] = ()
    """honoured: the values that are; empty for all. no effect: values that need no word."""
    always: bool = False
    """`only` must also hold where the flag was not given."""


@lru_cache(maxsize=1)
def verdicts() -> tuple[Verdict, ...]:
    """The table, in the file's order."""
    content = tomllib.loads((FOLDER / "verdicts.toml").read_text(encoding="utf-8"))
    return tuple(Verdict(**{**group, "flags": tuple(group["flags"]), "only": _values(group.get("only", []))}) for group in content["group"])


@lru_cache(maxsize=1)
def by_flag() -> dict[str, Verdict]:
    """Flag -> its verdict."""
    return {flag: group for group in verdicts() for flag in group.flags}


def told(line: Sequence[str]) -> frozenset[str]:
    """The flags that a command line gives."""
    return frozenset(word.partition("=")[0] for word in line if word.startswith("--"))


def judge(parser: argparse.ArgumentParser, arguments: argparse.Namespace, given: Collection[str]) -> tuple[list[str], list[str]]:
    """What must be refused, and what has no effect. Flags of this package's own are not looked at.

    A flag is refused by its value too, as upstream sets some from the environment.

    Args:
        parser: the real one, or one made from a table.
        arguments: what it parsed.
        given: flags that the command line gives.

    Returns:
        (a line for every refusal, a line for every flag without effect).
    """
    refused, unused = [], []
    for action in parser._actions:
        if action.dest.startswith("vita_") or action.dest == "help":
            continue
        value, default = getattr(arguments, action.dest, action.default), action.default
        names = [flag for flag in action.option_strings if flag in given]
        flag = (names or action.option_strings)[0]
        verdict = by_flag().get(flag)
        if verdict is None:
            if names:
                known = " and ".join(tables())
                refused.append(f"{flag}: the table of flags, made for MindSpeed-LLM {known}, does not know it; leave it out")
        elif verdict.verdict == NO_EFFECT:
            if names and value != default and value not in verdict.only:
                unused.append(f"{_written(action, flag, value)} has no effect here: {verdict.why}")
        elif verdict.verdict == REFUSED:
            if value != default:
                refused.append(f"{_written(action, flag, value)}: {verdict.why}; {verdict.use}")
        elif verdict.only and value not in verdict.only and (names or verdict.always or value != default):
            refused.append(_not_honoured(action, flag, value, bool(names), verdict))
    return refused, unused


def _not_honoured(action: argparse.Action, flag: str, value: Any, is_given: bool, verdict: Verdict) -> str:
    if action.nargs == 0:  # a switch that must be there
        return f"{flag} is missing: {verdict.why}; {verdict.use}"
    default = "" if is_given else " (the default)"
    return f"{_written(action, flag, value)}{default}: {verdict.why}; {verdict.use}"


def _written(action: argparse.Action, flag: str, value: Any) -> str:
    if action.nargs == 0:
        return flag
    return " ".join([flag, *map(str, value)]) if isinstance(value, (list, tuple)) else f"{flag} {value}"


def _values(written: Sequence[Any]) -> tuple[Any, ...]:
    """TOML has no None: the word none stands for it."""
    return tuple(None if value == "none" else value for value in written)
