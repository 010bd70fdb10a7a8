"""What `vita patches verify`, `vita patches moved` and `vita patches table` do in a source tree."""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict

from mindspeed_vita.cli.patches import wrapped
from mindspeed_vita.integration.patching.ledger import Ledger
from patches.tool.checkout import Checkouts
from patches.tool.moved import Move, moves
from patches.tool.tables import build_table, table_text
from patches.tool.verify import EntryCheck, Verification, verify


def run(arguments: argparse.Namespace, ledger: Ledger) -> int:
    """Prints what was asked for; 1 when verify found a problem."""
    if arguments.action == "moved":
        sides = (Checkouts.in_folders(folders, ledger.upstreams) for folders in (arguments.before, arguments.upstream))
        found = moves(ledger, *sides)
        print(json.dumps([asdict(move) for move in found], indent=2) if arguments.json else _moved(found, ledger))
        return 0
    sources = Checkouts.in_folders(arguments.upstream, ledger.upstreams) if arguments.upstream else Checkouts.installed(ledger.upstreams)
    if arguments.action == "verify":
        report = verify(ledger, sources)
        text = json.dumps({**asdict(report), "problems": report.problems}, indent=2) if arguments.json else _verified(report)
        print(text)
        return 1 if report.problems else 0
    text = table_text(build_table(ledger, sources, arguments.name))
    if arguments.output is None:
        print(text, end="")
    else:
        arguments.output.write_text(text, encoding="utf-8")
        print(f"wrote {arguments.output}")
    return 0


def _verified(report: Verification) -> str:
    lines = []
    for part in ("upstream", "patch", "seam", "imports"):
        lines += [line for finding in report.findings if finding.part == part for line in _finding(finding)]
    if report.table is not None:
        changed = f"; other source than there: {len(report.changed)} names" if report.changed else ", source for source"
        lines += [f"closest table: {report.table}{changed}", *(wrapped(name) for name in report.changed)]
    count = len(report.problems)
    lines.append(f"FAIL: {count} problem(s); the plugin would not start, or would do something else" if count else "PASS: the ledger fits")
    return "\n".join(lines)


def _finding(finding: EntryCheck) -> list[str]:
    state = "BAD" if finding.problems else "ok"
    shown = f" {finding.found}" if finding.part in ("upstream", "imports") else ""
    return [f"{state:<4} {finding.part:<8} {finding.target}{shown}", *(wrapped(problem, 14) for problem in finding.problems)]


def _moved(found: Sequence[Move], ledger: Ledger) -> str:
    lines = []
    for move in found:
        lines.append(f"{move.change:<10} {move.part:<7} {move.target}")
        if move.before is not None:
            lines.append(wrapped(f"was     {move.before.file}:{move.before.line}", 11))
        if move.now is not None:
            lines.append(wrapped(f"is      {move.now.file}:{move.now.line}", 11))
        if move.told:
            lines.append(wrapped(f"change  {move.told}", 11))
        for place in move.suggestions:
            lines.append(wrapped(f"perhaps {place.file}:{place.line} {place.name}, {place.alike:.0%} of the words", 11))
        if move.change == "gone" and not move.suggestions:
            lines.append(wrapped("perhaps nothing like it was found", 11))
    counts = Counter(move.change for move in found)
    told = ", ".join(f"{counts[change]} {change}" for change in ("gone", "signature", "place", "body") if counts[change])
    names = len(ledger.patches) + len(ledger.seams)
    same = names - sum(move.part != "import" for move in found)
    lines.append(f"{len(found)} names{f': {told}' if told else ''}; {same} of the ledger's {names} names are as they were")
    return "\n".join(lines)
