"""Reads upstream's installed sources by their syntax trees: where a name is defined, and what its lines are. Imports none of them."""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import re
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Optional, Union

from mindspeed_vita.integration.patching import signatures
from mindspeed_vita.integration.patching.ledger import Upstream

MODULE, VALUE = "module", "value"
"""What a name without a body of its own stands for: a module; a constant, or a name from another package."""

_Definition = Union[ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef]


@dataclass(frozen=True, kw_only=True)
class Definition:
    """The function or class that a dotted name stands for."""

    name: str
    """Dotted name of the definition. It differs from the name that was asked for where that one is an import."""
    project: str
    file: str
    """Relative to the checkout."""
    kind: str
    """function or class."""
    signature: Optional[str]
    """A class has the signature of its __init__; None where it defines none."""
    source: str
    """Start of the sha256 of its lines: shows whether anything in it changed."""


class Sources:
    """The sources of the upstream projects.

    Args:
        roots: the folders that hold a project's package, for each project.
        upstreams: the projects.
    """

    def __init__(self, roots: Mapping[str, Sequence[Path]], upstreams: Sequence[Upstream]) -> None:
        self.roots, self.upstreams = roots, tuple(upstreams)
        self._packages = {each.package for each in upstreams}
        self._texts: dict[Path, str] = {}
        self._trees: dict[Path, ast.Module] = {}

    def version(self, project: str) -> Optional[str]:
        """The version that a project's files state, or None."""
        upstream = next(each for each in self.upstreams if each.project == project)
        paths = [root / upstream.version_file for root in self.roots[project]]
        return next((stated_version(self.text(path)) for path in paths if path.is_file()), None)

    def commit(self, project: str) -> tuple[Optional[str], Optional[str]]:
        """(branch or tag, commit) of a project; None where git knows none."""
        root = self.roots[project][0]
        if not (root / ".git").exists():
            return None, None
        name = _git(root, "describe", "--tags", "--exact-match") or _git(root, "symbolic-ref", "--short", "HEAD")
        return name, _git(root, "rev-parse", "HEAD")

    def find(self, dotted: str) -> Optional[Definition]:
        """The definition behind a dotted name, imports followed; None if there is none."""
        found = self._look_up(dotted, frozenset())
        return found if isinstance(found, Definition) else None

    def what_is(self, dotted: str) -> Optional[str]:
        """The digest of a function or class, MODULE, VALUE, or None where there is nothing of that name."""
        found = self._look_up(dotted, frozenset())
        return found.source if isinstance(found, Definition) else found

    def imported_from(self, package: str, user: str) -> Iterator[str]:
        """Every name that a project imports from a package, wherever in its files the import stands."""
        mentioned = re.compile(rf"^\s*(?:from|import)\s+{package}(?:\.|\s)", re.MULTILINE)
        for tree in (self.tree(path) for path in self.files[user] if mentioned.search(self.text(path))):
            for statement in ast.walk(tree):
                if isinstance(statement, ast.ImportFrom) and not statement.level and (statement.module or "").split(".")[0] == package:
                    names = [alias.name for alias in statement.names]
                    yield from (str(statement.module) if name == "*" else f"{statement.module}.{name}" for name in names)
                elif isinstance(statement, ast.Import):
                    yield from (alias.name for alias in statement.names if alias.name.split(".")[0] == package)

    def _look_up(self, dotted: str, seen: frozenset[str]) -> Union[Definition, str, None]:
        parts = dotted.split(".")
        if parts[0] not in self._packages:
            return VALUE  # what other packages hold is not looked at
        if dotted in seen:
            return None
        place, name, inside = self._innermost(parts)
        if place is not None:
            project, path = place
            body = self.tree(path).body
            node = _descend(body, [name, *inside])
            if node is not None:
                return self._definition(dotted, project, path, node)
            for source in _sources_of(name, body, self.package_of(project, path), self._packages):
                found = self._look_up(".".join([source, *inside]), seen | {dotted})
                if found is not None:
                    return found
            if not inside and _is_assigned(name, body):
                return VALUE
        return MODULE if self._module_file(parts) else None

    def _innermost(self, parts: Sequence[str]) -> tuple[Optional[tuple[str, Path]], str, Sequence[str]]:
        """The longest start of a name that is a module's, the name that follows it, and the rest."""
        for end in range(len(parts) - 1, 0, -1):
            place = self._module_file(parts[:end])
            if place is not None:
                return place, parts[end], parts[end + 1 :]
        return None, "", ()

    def _definition(self, dotted: str, project: str, path: Path, node: _Definition) -> Definition:
        function = node
        if isinstance(node, ast.ClassDef):
            function = _descend(node.body, ["__init__"]) or node
        lines = self.text(path).splitlines()[node.lineno - 1 : node.end_lineno]
        return Definition(
            name=dotted,
            project=project,
            file=self.relative(project, path),
            kind="class" if isinstance(node, ast.ClassDef) else "function",
            signature=None if isinstance(function, ast.ClassDef) else signatures.of_node(function),
            source=hashlib.sha256("\n".join(line.rstrip() for line in lines).encode()).hexdigest()[:16],
        )

    @cached_property
    def files(self) -> dict[str, list[Path]]:
        return {
            each.project: sorted(path for root in self.roots[each.project] for path in (root / each.package).rglob("*.py"))
            for each in self.upstreams
        }

    def text(self, path: Path) -> str:
        if path not in self._texts:
            self._texts[path] = path.read_text(encoding="utf-8", errors="replace")
        return self._texts[path]

    def tree(self, path: Path) -> ast.Module:
        if path not in self._trees:
            self._trees[path] = ast.parse(self.text(path), filename=str(path))
        return self._trees[path]

    def _module_file(self, parts: Sequence[str]) -> Optional[tuple[str, Path]]:
        for upstream in self.upstreams:
            bases = [root.joinpath(*parts) for root in self.roots[upstream.project] if parts[0] == upstream.package]
            for path in (path for base in bases for path in (base / "__init__.py", base.with_suffix(".py"))):
                if path.is_file():
                    return upstream.project, path
        return None

    def relative(self, project: str, path: Path) -> str:
        root = next(root for root in self.roots[project] if path.is_relative_to(root))
        return path.relative_to(root).as_posix()

    def module_name(self, project: str, path: Path) -> str:
        return self.relative(project, path).removesuffix(".py").removesuffix("/__init__").replace("/", ".")

    def package_of(self, project: str, path: Path) -> list[str]:
        name = self.module_name(project, path).split(".")
        return name if path.name == "__init__.py" else name[:-1]


def installed_roots(upstreams: Sequence[Upstream]) -> dict[str, list[Path]]:
    """The folders that Python would import each project's package from, found without importing it.

    Raises:
        ValueError: a project is not installed.
    """
    roots = {}
    for upstream in upstreams:
        spec = importlib.util.find_spec(upstream.package)
        roots[upstream.project] = [Path(place).parent for place in (spec.submodule_search_locations or ())] if spec else []
    absent = [project for project, folders in roots.items() if not folders]
    if absent:
        raise ValueError(f"{' and '.join(absent)} not installed, so nothing can be verified here; give checkouts: --upstream FOLDER")
    return roots


def stated_version(text: str) -> Optional[str]:
    """The version in a setup.py or package_info.py: `__version__ = "..."`, or MAJOR, MINOR and PATCH."""
    direct = re.search(r"""^__version__\s*=\s*['"]([^'"]+)['"]\s*$""", text, re.MULTILINE)
    if direct:
        return direct.group(1)
    parts = [re.search(rf"^{name}\s*=\s*(\d+)", text, re.MULTILINE) for name in ("MAJOR", "MINOR", "PATCH")]
    return ".".join(part.group(1) for part in parts if part) if all(parts) else None


def statements(body: Sequence[ast.stmt]) -> Iterator[ast.stmt]:
    """Statements that run when a module or class is made, those under if, try and with included."""
    for statement in body:
        yield statement
        for inner in ("body", "orelse", "finalbody"):
            if isinstance(statement, (ast.If, ast.Try, ast.With)):
                yield from statements(getattr(statement, inner, []))
        if isinstance(statement, ast.Try):
            for handler in statement.handlers:
                yield from statements(handler.body)


def module_of(statement: ast.ImportFrom, package: Sequence[str]) -> str:
    """Dotted name of the module that `from ... import` names, in a file of the package."""
    start = package[: len(package) - statement.level + 1] if statement.level else []
    return ".".join([*start, *filter(None, [statement.module])])


def _descend(body: Sequence[ast.stmt], names: Sequence[str]) -> Optional[_Definition]:
    """The last definition of names[0] in a body, and inside it of names[1], and so on."""
    found = None
    for statement in statements(body):
        if isinstance(statement, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)) and statement.name == names[0]:
            found = statement
    if found is None or len(names) == 1:
        return found
    return _descend(found.body, names[1:]) if isinstance(found, ast.ClassDef) else None


def _sources_of(name: str, body: Sequence[ast.stmt], package: Sequence[str], packages: set[str]) -> Iterator[str]:
    """Dotted names that a module may import a name from, the last import first; `import *` of one of the packages may bring any name."""
    for statement in reversed(list(statements(body))):
        if isinstance(statement, ast.ImportFrom):
            module = module_of(statement, package)
            yield from (f"{module}.{alias.name}" for alias in statement.names if (alias.asname or alias.name) == name)
            yield from (f"{module}.{name}" for alias in statement.names if alias.name == "*" and module.split(".")[0] in packages)
        elif isinstance(statement, ast.Import):
            yield from (alias.name for alias in statement.names if alias.asname == name)


def _is_assigned(name: str, body: Sequence[ast.stmt]) -> bool:
    found = [statement for statement in statements(body) if isinstance(statement, (ast.Assign, ast.AnnAssign))]
    targets = [target for each in found for target in (each.targets if isinstance(each, ast.Assign) else [each.target])]
    return any(isinstance(part, ast.Name) and part.id == name for target in targets for part in ast.walk(target))


def _git(folder: Path, *arguments: str) -> Optional[str]:
    try:
        done = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None if done.returncode == 0 else None
