"""What a start says of upstream's sources before it imports them: names that are missing are refused, changed bodies are one line."""

from __future__ import annotations

from mindspeed_vita.integration.patching.checkout import Checkouts
from mindspeed_vita.integration.patching.ledger import Ledger
from mindspeed_vita.integration.patching.tables import changed_sources, missing_imports, read_table, seams_and_imports

_SHOWN = 3


def compare_sources(ledger: Ledger) -> list[str]:
    """Compares the installed sources with the signature tables, by their syntax trees. Takes some 2 s of processor time.

    Returns:
        No line, or one that names what has another body behind the same signature than in the closest table.

    Raises:
        ValueError: a project imports something from another that is not there.
    """
    tables = [read_table(path) for path in ledger.tables]
    sources = Checkouts.installed(ledger.upstreams)
    found = {"patches": _definitions(ledger, sources), **seams_and_imports(ledger, sources)}
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


def _definitions(ledger: Ledger, sources: Checkouts) -> dict[str, dict[str, object]]:
    found = {patch.target: sources.find(patch.target) for patch in ledger.patches}
    return {target: {"definition": {"source": each.source} if each else None} for target, each in found.items()}


def _some(names: list[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
