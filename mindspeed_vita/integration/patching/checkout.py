"""Reads upstream's sources by their syntax trees: where a name is defined, its signature, and who else touches it. Imports none of it."""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import re
import subprocess
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Iterable, Iterator, Mapping, Optional, Sequence, Union

from mindspeed_vita.integration.patching import signatures
from mindspeed_vita.integration.patching.ledger import Upstream

_Definition = Union[ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef]


@dataclass(frozen=True, kw_only=True)
class Definition:
    """What a dotted name stands for in the checkouts."""

    name: str
    """Dotted name of the definition; differs from the name asked for where that is an import."""
    project: str
    file: str
    """Relative to the checkout."""
    kind: str
    """function or class."""
    signature: Optional[str]
    """A class's is that of its __init__; None where it has none of its own."""
    source: str
    """Start of the sha256 of its lines, for telling whether it changed at all."""


@dataclass(frozen=True, kw_only=True)
class Mention:
    """A place outside the definition that names the target."""

    project: str
    file: str
    name: str
    """A patch: the function that upstream puts there. An import: the name it is bound to."""


class Checkouts:
    """The sources of the upstream projects.

    Args:
        roots: of each project, the folders that hold its package.
        upstreams: the projects.
    """

    def __init__(self, roots: Mapping[str, Sequence[Path]], upstreams: Sequence[Upstream]) -> None:
        self.roots, self.upstreams = roots, tuple(upstreams)
        self._texts: dict[Path, str] = {}
        self._trees: dict[Path, ast.Module] = {}

    @classmethod
    def in_folders(cls, folders: Sequence[Path], upstreams: Sequence[Upstream]) -> Checkouts:
        """Checkouts by path: each folder is one, or has some in it.

        Raises:
            ValueError: a folder does not exist, or a project is in none of them.
        """
        absent = [str(folder) for folder in folders if not folder.is_dir()]
        if absent:
            raise ValueError(f"no folder {', '.join(absent)}; expected one with {', '.join(each.project for each in upstreams)} in it")
        candidates = [place for folder in folders for place in (folder, *sorted(path for path in folder.glob("*") if path.is_dir()))]
        roots = {}
        for upstream in upstreams:
            places = [place for place in candidates if (place / upstream.package).is_dir()]
            if not places:
                looked = ", ".join(map(str, folders))
                raise ValueError(f"no checkout of {upstream.project} in {looked}; expected a folder with {upstream.package}/ in it")
            # MindSpeed-LLM's instructions copy megatron/ into its checkout, so the folder need not have the project's name
            roots[upstream.project] = [next((place for place in places if place.name == upstream.project), places[0])]
        return cls(roots, upstreams)

    @classmethod
    def installed(cls, upstreams: Sequence[Upstream]) -> Checkouts:
        """What Python would import, found without importing it.

        Raises:
            ValueError: a project is not installed.
        """
        roots = {}
        for upstream in upstreams:
            spec = importlib.util.find_spec(upstream.package)
            roots[upstream.project] = [Path(place).parent for place in (spec.submodule_search_locations or ())] if spec else []
        absent = [upstream.project for upstream in upstreams if not roots[upstream.project]]
        if absent:
            raise ValueError(f"{' and '.join(absent)} not installed, so nothing can be verified here; give checkouts: --upstream FOLDER")
        return cls(roots, upstreams)

    def version(self, project: str) -> Optional[str]:
        """The version a checkout states, or None."""
        upstream = next(each for each in self.upstreams if each.project == project)
        paths = [root / upstream.version_file for root in self.roots[project]]
        return next((stated_version(self._text(path)) for path in paths if path.is_file()), None)

    def commit(self, project: str) -> tuple[Optional[str], Optional[str]]:
        """(branch or tag, commit) of a checkout; None where git knows none."""
        root = self.roots[project][0]
        if not (root / ".git").exists():
            return None, None
        name = _git(root, "describe", "--tags", "--exact-match") or _git(root, "symbolic-ref", "--short", "HEAD")
        return name, _git(root, "rev-parse", "HEAD")

    def find(self, dotted: str) -> Optional[Definition]:
        """The definition behind a dotted name, imports followed; None if there is none."""
        return self._find(dotted, frozenset())

    def patches(self, dotted: str) -> list[Mention]:
        """Where upstream puts something in the target's place: names it in a string, as every registration does, or assigns to it."""
        return sorted(self._patches(dotted), key=lambda mention: (mention.project, mention.file, mention.name))

    def imports(self, dotted: str) -> list[Mention]:
        """Modules that bind the object to a name of their own when they are imported."""
        module, leaf = dotted.rsplit(".", 1)
        found = []
        for project, path, tree in self._files_with(leaf):
            if self._module_name(project, path) == module:
                continue
            for name, source in _imported(statements(tree.body), self._package(project, path)).items():
                if source == dotted:
                    found.append(Mention(project=project, file=self._relative(project, path), name=name))
        return sorted(found, key=lambda mention: (mention.project, mention.file, mention.name))

    def module(self, parts: Sequence[str]) -> Optional[tuple[ast.Module, list[str]]]:
        """The syntax tree of a module and the names of its package; None if there is no such module."""
        place = self._module_file(parts) if parts else None
        return None if place is None else (self._tree(place[1]), self._package(*place))

    def trees(self, project: str, mentioned: re.Pattern[str]) -> Iterator[ast.Module]:
        """Parsed files of a project whose text matches."""
        return (self._tree(path) for path in self._files[project] if mentioned.search(self._text(path)))

    def _find(self, dotted: str, seen: frozenset[str]) -> Optional[Definition]:
        parts = dotted.split(".")
        if dotted in seen:
            return None
        for end in range(len(parts) - 1, 0, -1):
            place = self._module_file(parts[:end])
            if place is None:
                continue
            project, path = place
            tree = self._tree(path)
            node = _descend(tree.body, parts[end:])
            if node is not None:
                return self._definition(".".join(parts), project, path, node)
            source = _imported(statements(tree.body), self._package(project, path)).get(parts[end])
            return self._find(".".join([source, *parts[end + 1 :]]), seen | {dotted}) if source else None
        return None

    def _definition(self, dotted: str, project: str, path: Path, node: _Definition) -> Definition:
        function = node
        if isinstance(node, ast.ClassDef):
            function = _descend(node.body, ["__init__"]) or node
        lines = self._text(path).splitlines()[node.lineno - 1 : node.end_lineno]
        return Definition(
            name=dotted,
            project=project,
            file=self._relative(project, path),
            kind="class" if isinstance(node, ast.ClassDef) else "function",
            signature=None if isinstance(function, ast.ClassDef) else signatures.of_node(function),
            source=hashlib.sha256("\n".join(line.rstrip() for line in lines).encode()).hexdigest()[:16],
        )

    def _patches(self, dotted: str) -> Iterator[Mention]:
        for project, path, tree in self._files_with(dotted.rsplit(".", 1)[1]):
            for nodes, names in _scopes(tree, self._package(project, path)):
                for written in _put_there(nodes, dotted, names):
                    source = _resolved(written, names)
                    found = self.find(source)
                    yield Mention(project=project, file=self._relative(project, path), name=found.name if found else source)

    def _files_with(self, text: str) -> Iterator[tuple[str, Path, ast.Module]]:
        """Parsed files of all projects that hold the text; reading is cheaper than parsing."""
        for project, paths in self._files.items():
            for path in paths:
                if text in self._text(path):
                    yield project, path, self._tree(path)

    @cached_property
    def _files(self) -> dict[str, list[Path]]:
        return {
            each.project: sorted(path for root in self.roots[each.project] for path in (root / each.package).rglob("*.py"))
            for each in self.upstreams
        }

    def _text(self, path: Path) -> str:
        if path not in self._texts:
            self._texts[path] = path.read_text(encoding="utf-8", errors="replace")
        return self._texts[path]

    def _tree(self, path: Path) -> ast.Module:
        if path not in self._trees:
            self._trees[path] = ast.parse(self._text(path), filename=str(path))
        return self._trees[path]

    def _module_file(self, parts: Sequence[str]) -> Optional[tuple[str, Path]]:
        for upstream in self.upstreams:
            bases = [root.joinpath(*parts) for root in self.roots[upstream.project] if parts[0] == upstream.package]
            for path in (path for base in bases for path in (base / "__init__.py", base.with_suffix(".py"))):
                if path.is_file():
                    return upstream.project, path
        return None

    def _relative(self, project: str, path: Path) -> str:
        root = next(root for root in self.roots[project] if path.is_relative_to(root))
        return path.relative_to(root).as_posix()

    def _module_name(self, project: str, path: Path) -> str:
        return self._relative(project, path).removesuffix(".py").removesuffix("/__init__").replace("/", ".")

    def _package(self, project: str, path: Path) -> list[str]:
        name = self._module_name(project, path).split(".")
        return name if path.name == "__init__.py" else name[:-1]


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


def _descend(body: Sequence[ast.stmt], names: Sequence[str]) -> Optional[_Definition]:
    """The last definition of names[0] in a body, and inside it of names[1], and so on."""
    found = None
    for statement in statements(body):
        if isinstance(statement, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)) and statement.name == names[0]:
            found = statement
    if found is None or len(names) == 1:
        return found
    return _descend(found.body, names[1:]) if isinstance(found, ast.ClassDef) else None


def _imported(statements: Iterable[ast.AST], package: Sequence[str]) -> dict[str, str]:
    """Name -> dotted name it is imported from."""
    found = {}
    for statement in statements:
        if isinstance(statement, ast.ImportFrom):
            start = list(package[: len(package) - statement.level + 1]) if statement.level else []
            module = ".".join([*start, *(statement.module or "").split(".")]).strip(".")
            found.update({alias.asname or alias.name: f"{module}.{alias.name}" for alias in statement.names})
        elif isinstance(statement, ast.Import):
            found.update({alias.asname: alias.name for alias in statement.names if alias.asname})
    return found


def _scopes(tree: ast.Module, package: Sequence[str]) -> Iterator[tuple[list[ast.AST], dict[str, str]]]:
    """The nodes of each function, and those outside of all, with the names that are imported there."""
    names = _imported(statements(tree.body), package)
    outside = [statement for statement in statements(tree.body) if isinstance(statement, (ast.Expr, ast.Assign))]
    yield [node for statement in outside for node in ast.walk(statement)], names
    for scope in ast.walk(tree):
        if isinstance(scope, (ast.FunctionDef, ast.AsyncFunctionDef)):
            yield list(ast.walk(scope)), {**names, **_imported(ast.walk(scope), package)}


def _put_there(nodes: Iterable[ast.AST], dotted: str, names: Mapping[str, str]) -> Iterator[str]:
    """What follows the string in a call's arguments or a tuple, register_patch("a.b.c", this), or is assigned, a.b.c = this."""
    for node in nodes:
        parts = node.args if isinstance(node, ast.Call) else node.elts if isinstance(node, (ast.Tuple, ast.List)) else []
        for part, following in zip(parts, [*parts[1:], None]):
            if isinstance(part, ast.Constant) and part.value == dotted:
                yield ast.unparse(following) if following is not None else "nothing"
        if isinstance(node, ast.Assign):
            targets = [ast.unparse(target) for target in node.targets if isinstance(target, ast.Attribute)]
            if dotted in [_resolved(target, names) for target in targets]:
                yield ast.unparse(node.value)


def _resolved(written: str, names: Mapping[str, str]) -> str:
    """A name as it is written in a scope, dotted from its package on."""
    start, _, rest = written.partition(".")
    return ".".join(filter(None, (names.get(start, start), rest)))


def _git(folder: Path, *arguments: str) -> Optional[str]:
    try:
        done = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None if done.returncode == 0 else None
