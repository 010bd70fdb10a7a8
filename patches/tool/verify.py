"""Compares the ledger with upstream's sources by their syntax trees: what would be refused, known before anything is imported."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, Optional, Sequence

from mindspeed_vita.integration.patching import signatures
from mindspeed_vita.integration.patching.ledger import Ledger, Patch, Seam, Upstream
from mindspeed_vita.integration.patching.starting import missing_imports, read_table
from patches.tool.checkout import Checkouts
from patches.tool.tables import build_table, closest

_SHOWN = 8
"""Missing imports that are named; another version lacks dozens."""


@dataclass(frozen=True, kw_only=True)
class EntryCheck:
    """What was found about one entry."""

    part: Literal["upstream", "patch", "seam", "imports"]
    target: str
    """Project or dotted name."""
    problems: tuple[str, ...]
    """Empty: it is as the ledger says. Each says what to do."""
    found: str
    """Version, or signature and file."""


@dataclass(frozen=True, kw_only=True)
class Verification:
    """Everything that verify found."""

    findings: tuple[EntryCheck, ...]
    table: Optional[str]
    """The closest signature table."""
    changed: tuple[str, ...]
    """Names whose source differs from that table's, even where the signature is the same."""

    @property
    def problems(self) -> list[str]:
        """All problems, each with the name it is about."""
        return [f"{finding.target}: {problem}" for finding in self.findings for problem in finding.problems]


def verify(ledger: Ledger, sources: Checkouts) -> Verification:
    """Compares the ledger with upstream's sources."""
    table = build_table(ledger, sources, "found")
    findings = [_project(ledger, sources, project, entry) for project, entry in table["projects"].items()]
    findings += [_patch(patch, table["patches"][patch.target]) for patch in ledger.patches]
    findings += [_seam(seam, table["seams"][seam.target]) for seam in ledger.seams]
    tables = [read_table(path) for path in ledger.tables]
    findings += [_imports(each, table, missing_imports(tables, table)) for each in ledger.upstreams if each.used_by]
    name, changed = closest(tables, table) or (None, [])
    return Verification(findings=tuple(findings), table=name, changed=tuple(changed))


def _project(ledger: Ledger, sources: Checkouts, project: str, entry: dict[str, Any]) -> EntryCheck:
    supported = next(each.versions for each in ledger.upstreams if each.project == project)
    version = entry["version"]
    # a wheel leaves setup.py behind, and then nothing states a version
    wrong = [f"version {version}; check out {' or '.join(supported)}"] if supported and version and version not in supported else []
    found = [str(part) for part in (version or "of unknown version", entry["branch"], (entry["commit"] or "")[:12]) if part]
    return EntryCheck(part="upstream", target=project, problems=tuple(wrong), found=" ".join(found))


def _patch(patch: Patch, entry: dict[str, Any]) -> EntryCheck:
    problems = _definition(patch.signature, patch.definition, entry["definition"])
    registered = {mention["name"]: mention["file"] for mention in entry["patched_upstream"]}
    declared = {each.by: each.when for each in patch.patched_upstream}
    problems += [
        f"{file} patches it with {name}, which the ledger does not know; read it and declare it under patched_upstream"
        for name, file in registered.items()
        if name not in declared
    ]
    problems += [
        f"nothing registers {name} any more; take the declaration out, and ask whether our patch is still needed"
        for name, when in declared.items()
        if when == "always" and name not in registered
    ]
    leaf = patch.target.rsplit(".", 1)[1]
    problems += [
        f"{mention['file']} imports it as {mention['name']} and may keep the old function; import that module after the patches, "
        f"or give the ledger an entry for that name"
        for mention in entry["imported_by"]
        if mention["name"] != leaf
    ]
    return EntryCheck(part="patch", target=patch.target, problems=tuple(problems), found=_found(entry))


def _seam(seam: Seam, entry: dict[str, Any]) -> EntryCheck:
    problems = _definition(seam.signature, None, entry["definition"])
    return EntryCheck(part="seam", target=seam.target, problems=tuple(problems), found=_found(entry))


def _imports(upstream: Upstream, table: dict[str, Any], missing: Sequence[str]) -> EntryCheck:
    names = [name for name in table["imports"] if name.split(".")[0] == upstream.package]
    users = " and ".join(upstream.used_by)
    problems = [f"{users} imports {name}, which is not there" for name in missing if name in names]
    if problems:
        shown, rest = problems[:_SHOWN], len(problems) - _SHOWN
        more = f" and {rest} more; " if rest > 0 else "; "
        advice = f"check out the {upstream.project} that this {users} was made for (scripts/install_ascend.sh names it)"
        problems = [*shown[:-1], shown[-1] + more + advice]
    return EntryCheck(part="imports", target=f"{upstream.project} in {users}", problems=tuple(problems), found=f"{len(names)} names")


def _definition(signature: str, where: Optional[str], found: Optional[dict[str, Any]]) -> list[str]:
    if found is None:
        return ["moved or went; `vita patches moved` looks for its new place; write the entry anew"]
    problems = []
    if where is not None and found["name"] != where:
        problems.append(f"is defined as {found['name']}, not {where}; name the new place under `defined`")
    changed = signatures.difference(signature, found["signature"]) if found["signature"] else "it has none"
    if changed:
        problems.append(f"signature {found['signature']}, expected {signature}: {changed}; read it again and write the entry anew")
    return problems


def _found(entry: dict[str, Any]) -> str:
    definition = entry["definition"]
    return f"{definition['signature']} in {definition['project']} {definition['file']}" if definition else "nothing"
