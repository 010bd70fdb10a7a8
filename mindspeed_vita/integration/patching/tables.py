"""Signature tables: what one set of upstream versions says about every name of the ledger, as JSON that is made from checkouts."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any, Optional, Sequence

from mindspeed_vita.integration.patching.checkout import Checkouts, Mention
from mindspeed_vita.integration.patching.ledger import Ledger
from mindspeed_vita.integration.patching.used import used_names

FORMAT = 2


def build_table(ledger: Ledger, checkouts: Checkouts, name: str) -> dict[str, Any]:
    """The table of one set of checkouts.

    Args:
        ledger: says which names matter.
        checkouts: the sources.
        name: of the set, for instance "26.1.0".

    Returns:
        Plain data, the same for the same sources; names that do not exist have a definition of None.
    """
    projects = {}
    for upstream in checkouts.upstreams:
        branch, commit = checkouts.commit(upstream.project)
        projects[upstream.project] = {"version": checkouts.version(upstream.project), "branch": branch, "commit": commit}
    patches = {}
    for patch in ledger.patches:
        definition = checkouts.find(patch.target)
        names = {patch.target, definition.name if definition else patch.target}
        patches[patch.target] = {
            "definition": asdict(definition) if definition else None,
            "patched_upstream": _mentions([mention for each in sorted(names) for mention in checkouts.patches(each)]),
            "imported_by": _mentions([mention for each in sorted(names) for mention in checkouts.imports(each)]),
        }
    return {"format": FORMAT, "name": name, "projects": projects, "patches": patches, **seams_and_imports(ledger, checkouts)}


def seams_and_imports(ledger: Ledger, checkouts: Checkouts) -> dict[str, Any]:
    """The parts of a table that need no look at the whole of upstream."""
    seams = {}
    for seam in ledger.seams:
        definition = checkouts.find(seam.target)
        seams[seam.target] = {"definition": asdict(definition) if definition else None}
    return {"seams": seams, "imports": used_names(ledger, checkouts)}


def table_text(table: dict[str, Any]) -> str:
    """A table as it is written to a file."""
    return json.dumps(table, indent=2, sort_keys=False) + "\n"


def read_table(path: Path) -> dict[str, Any]:
    """A table from a file.

    Raises:
        ValueError: not JSON, or of another format.
    """
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: {error}; write it again with `vita patches table --upstream DIR --output {path.name}`") from None
    if not isinstance(table, dict) or table.get("format") != FORMAT:
        raise ValueError(f"{path}: expected a table of format {FORMAT}; write it again with `vita patches table`")
    return table


def changed_sources(table: dict[str, Any], found: dict[str, Any]) -> list[str]:
    """Names of the ledger whose source differs between two tables, signature or not."""
    names = []
    for part in ("patches", "seams"):
        for target, entry in found[part].items():
            before = (table[part].get(target) or {}).get("definition") or {}
            after = entry["definition"] or {}
            if before.get("source") != after.get("source"):
                names.append(target)
    return names + [name for name, source in found["imports"].items() if source != table["imports"].get(name)]


def missing_imports(tables: Sequence[dict[str, Any]], found: dict[str, Any]) -> list[str]:
    """Names that an upstream project imports from another and that are not there. Those that no table has are optional ones.

    Args:
        tables: of supported versions; without any, every name must be there.
        found: the table of what is to be judged.
    """
    never = {name for name in found["imports"] if tables and all(table["imports"].get(name, "") is None for table in tables)}
    return [name for name, source in found["imports"].items() if source is None and name not in never]


def closest(tables: Sequence[dict[str, Any]], found: dict[str, Any]) -> Optional[tuple[str, list[str]]]:
    """(name of the table with fewest changed sources, and of those with most commits in common; those sources); None without tables."""

    def distance(table: dict[str, Any]) -> tuple[int, int]:
        commits = [entry["commit"] == table["projects"].get(project, {}).get("commit") for project, entry in found["projects"].items()]
        return len(changed_sources(table, found)), -sum(commits)

    best = min(tables, key=distance, default=None)
    return None if best is None else (best["name"], changed_sources(best, found))


def _mentions(mentions: Sequence[Mention]) -> list[dict[str, str]]:
    unique = {(mention.project, mention.file, mention.name): asdict(mention) for mention in mentions}
    return [unique[key] for key in sorted(unique)]
