"""Signature tables: what one set of upstream versions says about every name of the ledger, as JSON that is made from checkouts."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any, Optional, Sequence

from mindspeed_vita.integration.patching.ledger import Ledger
from mindspeed_vita.integration.patching.starting import FORMAT, changed_sources, used_names
from patches.tool.checkout import Checkouts, Mention


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
    seams = {}
    for seam in ledger.seams:
        definition = checkouts.find(seam.target)
        seams[seam.target] = {"definition": asdict(definition) if definition else None}
    imports = used_names(ledger, checkouts)
    return {"format": FORMAT, "name": name, "projects": projects, "patches": patches, "seams": seams, "imports": imports}


def table_text(table: dict[str, Any]) -> str:
    """A table as it is written to a file."""
    return json.dumps(table, indent=2, sort_keys=False) + "\n"


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
