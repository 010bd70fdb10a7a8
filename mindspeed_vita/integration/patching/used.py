"""What one upstream project imports from another, and whether it is there: a version number may stay while functions move or change."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from typing import Optional

from mindspeed_vita.integration.patching.checkout import Checkouts, statements
from mindspeed_vita.integration.patching.ledger import Ledger

MODULE, VALUE = "module", "value"
"""What stands in a table for names without a body: modules, and constants or names from other packages."""


def used_names(ledger: Ledger, sources: Checkouts) -> dict[str, Optional[str]]:
    """Every name that a project takes from one that the ledger says it uses, wherever in its files it imports it.

    Args:
        ledger: whose upstreams say by whom they are used.
        sources: of the projects.

    Returns:
        Dotted name -> digest of the definition's lines, MODULE or VALUE; None where the name does not exist. Sorted by name.
    """
    found: dict[str, Optional[str]] = {}
    for upstream in ledger.upstreams:
        for user in upstream.used_by:
            for name in _imported_from(upstream.package, sources, user):
                if name not in found:
                    found[name] = what_is(name, sources)
    return dict(sorted(found.items()))


def what_is(name: str, sources: Checkouts, seen: frozenset[str] = frozenset()) -> Optional[str]:
    """The digest of a function or class, MODULE, VALUE, or None where there is nothing of that name."""
    definition = sources.find(name)
    if definition is not None:
        return definition.source
    parts = name.split(".")
    if sources.module(parts) is not None:
        return MODULE
    module = sources.module(parts[:-1])
    if module is None or name in seen:
        return None
    tree, package = module
    for statement in statements(tree.body):
        if isinstance(statement, (ast.Assign, ast.AnnAssign)):
            targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
            if any(isinstance(part, ast.Name) and part.id == parts[-1] for target in targets for part in ast.walk(target)):
                return VALUE
        if isinstance(statement, ast.ImportFrom):
            source = _source(statement, package)
            for alias in statement.names:
                if alias.name == "*" or (alias.asname or alias.name) == parts[-1]:
                    inner = f"{source}.{parts[-1] if alias.name == '*' else alias.name}"
                    # what other packages hold is not looked at
                    outside = source.split(".")[0] not in {each.package for each in sources.upstreams} and alias.name != "*"
                    result = VALUE if outside else what_is(inner, sources, seen | {name})
                    if result is not None:
                        return result
    return None


def _imported_from(package: str, sources: Checkouts, user: str) -> Iterator[str]:
    mentioned = re.compile(rf"^\s*(?:from|import)\s+{package}(?:\.|\s)", re.MULTILINE)
    for tree in sources.trees(user, mentioned):
        for statement in ast.walk(tree):
            if isinstance(statement, ast.ImportFrom) and not statement.level and (statement.module or "").split(".")[0] == package:
                yield from (f"{statement.module}.{alias.name}" if alias.name != "*" else str(statement.module) for alias in statement.names)
            elif isinstance(statement, ast.Import):
                yield from (alias.name for alias in statement.names if alias.name.split(".")[0] == package)


def _source(statement: ast.ImportFrom, package: list[str]) -> str:
    start = package[: len(package) - statement.level + 1] if statement.level else []
    return ".".join([*start, *filter(None, [statement.module])])
