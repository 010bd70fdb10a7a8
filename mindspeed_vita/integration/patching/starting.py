"""What a start asks of upstream's installed sources: their versions and commits, names that they lack, and bodies that changed.

It compares them with the signature tables, which the developer's tool beside patches/ makes.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Optional

from mindspeed_vita.integration.patching.ledger import Ledger, Upstream
from mindspeed_vita.integration.patching.sources import Sources, installed_roots

FORMAT = 2
"""Of the signature tables."""
_SHOWN = 3


def wrong_versions(ledger: Ledger) -> list[str]:
    """A line for every imported project whose version is not among the supported ones."""
    lines = []
    for upstream in ledger.upstreams:
        found = _version(upstream) if upstream.versions else None
        if found is not None and found not in upstream.versions:
            expected = " or ".join(upstream.versions)
            lines.append(f"{upstream.project} is {found}; the patches were written for {expected}: check that one out")
    return lines


def unknown_commits(ledger: Ledger) -> list[str]:
    """A line for every project whose version number tells nothing and whose commit is in no signature table; none where git knows none."""
    tables = [read_table(path)["projects"] for path in ledger.tables]
    lines = []
    for upstream in ledger.upstreams:
        known = {table[upstream.project]["commit"] for table in tables if upstream.project in table}
        commit = _installed([upstream]).commit(upstream.project)[1] if known and not upstream.versions else None
        if commit and commit not in known:
            expected = " or ".join(sorted(each[:12] for each in known if each))
            lines.append(f"{upstream.project} is at commit {commit[:12]}, the patches were compared with {expected}: vita patches verify")
    return lines


def compare_sources(ledger: Ledger) -> list[str]:
    """Compares the installed sources with the signature tables, by their syntax trees. Takes some 2 s of processor time.

    Returns:
        No line, or one that names the functions whose bodies differ from the closest table's behind the same signature.

    Raises:
        ValueError: a project imports something from another that is not there.
    """
    tables = [read_table(path) for path in ledger.tables]
    sources = _installed(ledger.upstreams)
    found = {
        "patches": _digests([patch.target for patch in ledger.patches], sources),
        "seams": _digests([seam.target for seam in ledger.seams], sources),
        "imports": used_names(ledger, sources),
    }
    missing = missing_imports(tables, found)
    if missing:
        users = {upstream.package: (upstream.project, " and ".join(upstream.used_by)) for upstream in ledger.upstreams}
        project, user = users[missing[0].split(".")[0]]
        raise ValueError(
            f"{project} lacks {len(missing)} names that {user} imports, {_some(missing)}; check out the {project} that this {user} was "
            "made for (scripts/install_ascend.sh names it); `vita patches verify` lists them"
        )
    compared = [(changed_sources(table, found), table["name"]) for table in tables]
    changed, name = min(compared, key=lambda pair: len(pair[0]), default=([], ""))
    if not changed:
        return []
    return [f"{len(changed)} functions of upstream have other bodies than in {name}, {_some(changed)}: vita patches verify"]


def read_table(path: Path) -> dict[str, Any]:
    """A signature table from a file.

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


def used_names(ledger: Ledger, sources: Sources) -> dict[str, Optional[str]]:
    """Every name that a project takes from one that the ledger says it uses.

    Returns:
        Dotted name -> what Sources.what_is says of it; None where the name does not exist. Sorted by name.
    """
    pairs = [(upstream.package, user) for upstream in ledger.upstreams for user in upstream.used_by]
    names = {name for package, user in pairs for name in sources.imported_from(package, user)}
    return {name: sources.what_is(name) for name in sorted(names)}


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


def _version(upstream: Upstream) -> Optional[str]:
    """What an imported project states: its module, the version_file next to its package, or pip; None if none of them does."""
    if upstream.package == "megatron":
        return getattr(importlib.import_module("megatron.core"), "__version__", None)
    try:
        return _installed([upstream]).version(upstream.project) or importlib.metadata.version(upstream.package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _installed(upstreams: Sequence[Upstream]) -> Sources:
    return Sources(installed_roots(upstreams), upstreams)


def _digests(targets: Sequence[str], sources: Sources) -> dict[str, Any]:
    """The part of a table's entries that changed_sources reads."""
    found = {target: sources.find(target) for target in targets}
    return {target: {"definition": {"source": each.source} if each else None} for target, each in found.items()}


def _some(names: list[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
