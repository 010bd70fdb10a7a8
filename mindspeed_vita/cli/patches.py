"""`vita patches`: the ledger as a list, its comparison with upstream's sources, and the signature tables made from them.

The last two are the developer's tool in patches/tool, which a source tree has and a wheel has not.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
import textwrap
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from mindspeed_vita.integration.patching import load_ledger
from mindspeed_vita.integration.patching.ledger import Ledger

_WIDTH = 118


def _list_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print JSON")


def _verify_arguments(parser: argparse.ArgumentParser) -> None:
    _list_arguments(parser)
    _upstream_argument(parser)


def _table_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--name", default="unnamed", help="of the set of versions, for instance 26.1.0")
    parser.add_argument("--output", type=Path, metavar="FILE", help="write it there (default: print it)")
    _upstream_argument(parser)


def _moved_arguments(parser: argparse.ArgumentParser) -> None:
    _list_arguments(parser)
    for flag, which in (("--before", "that the ledger was written for"), ("--upstream", "to move to")):
        told = f"checkouts {which}, or folders with checkouts in them; the first that has a project counts"
        parser.add_argument(flag, type=Path, nargs="+", required=True, metavar="FOLDER", help=told)


def _upstream_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--upstream",
        type=Path,
        nargs="+",
        default=[],
        metavar="FOLDER",
        help="checkouts, or folders with checkouts in them; the first that has a project counts (default: what is installed)",
    )


ACTIONS = {
    "list": ("what is changed in other packages, why, and until when", _list_arguments),
    "verify": ("compare the ledger with upstream's sources, importing none of them (needs a source tree)", _verify_arguments),
    "moved": ("list what differs between two sets of upstream versions, and where it may be now (needs a source tree)", _moved_arguments),
    "table": ("make the signature table of a set of upstream versions (needs a source tree)", _table_arguments),
}


def run(arguments: argparse.Namespace) -> int:
    """Prints what was asked for; 1 when verify found a problem.

    Raises:
        ValueError: verify, moved and table, where the package was installed without its source tree.
    """
    ledger = load_ledger()
    if arguments.action != "list":
        return _tool(ledger.folder, arguments.action)(arguments, ledger)
    if arguments.json:
        print(json.dumps({part: [asdict(entry) for entry in getattr(ledger, part)] for part in ("patches", "rebound")}, indent=2))
    else:
        print(_listed(ledger))
    return 0


def wrapped(text: str, indent: int = 4) -> str:
    """A paragraph, indented."""
    space = " " * indent
    line = " ".join(text.split())
    return textwrap.fill(line, _WIDTH, initial_indent=space, subsequent_indent=space + "  ", break_long_words=False, break_on_hyphens=False)


def _tool(folder: Path, action: str) -> Callable[[argparse.Namespace, Ledger], int]:
    if not (folder / "tool").is_dir():
        raise ValueError(
            f"`vita patches {action}` is a tool of the source tree, and this installation in {folder.parent} has none: "
            "run it in a clone of the repository, after `pip install -e .` there"
        )
    # tools of the source tree are no part of the installed package
    if str(folder.parent) not in sys.path:
        sys.path.insert(0, str(folder.parent))
    return importlib.import_module("patches.tool.command").run  # type: ignore[no-any-return]


def _listed(ledger: Ledger) -> str:
    counts = f"{len(ledger.patches)} patches, {sum(len(entry.targets) for entry in ledger.rebound)} attributes rebound"
    blocks = [f"{counts}, {len(ledger.seams)} seams; {ledger.folder / 'manifest.toml'}"]
    for patch in ledger.patches:
        lines = [f"of {patch.upstream} {', '.join(patch.versions)}", f"by {patch.replacement}"]
        lines += [f"over {declared.by} ({declared.when})" for declared in patch.patched_upstream]
        lines += [f"why {patch.why}", f"until {patch.until}", f"test {patch.test}"]
        blocks.append("\n".join([f"{patch.name}: {patch.kind} {patch.target}", *map(wrapped, lines)]))
    for entry in ledger.rebound:
        lines = [", ".join(entry.targets), f"when {entry.when}", f"why {entry.why}", f"until {entry.until}"]
        blocks.append("\n".join([f"rebound by {entry.by}", *map(wrapped, lines)]))
    return "\n\n".join(blocks)
