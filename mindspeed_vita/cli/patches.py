"""`vita patches`: the ledger as a list, its comparison with upstream's sources, and the signature tables made from them."""

from __future__ import annotations

import argparse
import json
import textwrap
from dataclasses import asdict
from pathlib import Path

from mindspeed_vita.integration.patching import load_ledger, verify
from mindspeed_vita.integration.patching.checkout import Checkouts
from mindspeed_vita.integration.patching.ledger import Ledger
from mindspeed_vita.integration.patching.tables import build_table, table_text
from mindspeed_vita.integration.patching.verify import EntryCheck, Verification

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
    "list": ("what is patched, why, and until when", _list_arguments),
    "verify": ("compare the ledger with upstream's sources; nothing of upstream is imported", _verify_arguments),
    "table": ("make the signature table of a set of upstream versions", _table_arguments),
}


def run(arguments: argparse.Namespace) -> int:
    """Prints what was asked for; 1 when verify found a problem."""
    ledger = load_ledger()
    if arguments.action == "list":
        print(_json({"patches": [asdict(patch) for patch in ledger.patches]}) if arguments.json else _listed(ledger))
        return 0
    if arguments.action == "verify":
        report = verify(arguments.upstream, ledger=ledger)
        print(_json({**asdict(report), "problems": report.problems}) if arguments.json else _verified(report))
        return 1 if report.problems else 0
    sources = Checkouts.in_folders(arguments.upstream, ledger.upstreams) if arguments.upstream else Checkouts.installed(ledger.upstreams)
    text = table_text(build_table(ledger, sources, arguments.name))
    if arguments.output is None:
        print(text, end="")
    else:
        arguments.output.write_text(text, encoding="utf-8")
        print(f"wrote {arguments.output}")
    return 0


def _listed(ledger: Ledger) -> str:
    blocks = [f"{len(ledger.patches)} patches, {len(ledger.seams)} seams; {ledger.folder / 'manifest.toml'}"]
    for patch in ledger.patches:
        lines = [f"{patch.name}: {patch.kind} {patch.target}"]
        lines += [f"of {patch.upstream} {', '.join(patch.versions)}", f"by {patch.replacement}"]
        lines += [f"over {declared.by} ({declared.when})" for declared in patch.patched_upstream]
        lines += [f"why {patch.why}", f"until {patch.until}", f"test {patch.test}"]
        blocks.append("\n".join([lines[0], *(_wrapped(line) for line in lines[1:])]))
    return "\n\n".join(blocks)


def _verified(report: Verification) -> str:
    lines = []
    for part in ("upstream", "patch", "seam", "imports"):
        lines += [line for finding in report.findings if finding.part == part for line in _finding(finding)]
    if report.table is not None:
        changed = f"; other source than there: {len(report.changed)} names" if report.changed else ", source for source"
        lines += [f"closest table: {report.table}{changed}", *(_wrapped(name) for name in report.changed)]
    count = len(report.problems)
    lines.append(f"FAIL: {count} problem(s); the plugin would not start, or would do something else" if count else "PASS: the ledger fits")
    return "\n".join(lines)


def _finding(finding: EntryCheck) -> list[str]:
    state = "BAD" if finding.problems else "ok"
    shown = f" {finding.found}" if finding.part in ("upstream", "imports") else ""
    return [f"{state:<4} {finding.part:<8} {finding.target}{shown}", *(_wrapped(problem, 14) for problem in finding.problems)]


def _wrapped(text: str, indent: int = 4) -> str:
    space = " " * indent
    line = " ".join(text.split())
    return textwrap.fill(line, _WIDTH, initial_indent=space, subsequent_indent=space + "  ", break_long_words=False, break_on_hyphens=False)


def _json(data: object) -> str:
    return json.dumps(data, indent=2, default=str)
