"""Checkouts of the upstream projects: their sources by path, and who in upstream patches or imports a name."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mindspeed_vita.integration.patching.ledger import Upstream
from mindspeed_vita.integration.patching.sources import Sources, installed_roots, module_of, statements


@dataclass(frozen=True, kw_only=True)
class Mention:
    """A place outside the definition that names the target."""

    project: str
    file: str
    name: str
    """A patch: the function that upstream puts there. An import: the name it is bound to."""


class Checkouts(Sources):
    """The upstream projects with everything that the developer's tool asks of them."""

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
        """What Python would import.

        Raises:
            ValueError: a project is not installed.
        """
        return cls(installed_roots(upstreams), upstreams)

    def patches(self, dotted: str) -> list[Mention]:
        """Where upstream puts something in the target's place: names it in a string, as every registration does, or assigns to it."""
        return sorted(self._patches(dotted), key=lambda mention: (mention.project, mention.file, mention.name))

    def imports(self, dotted: str) -> list[Mention]:
        """Modules that bind the object to a name of their own when they are imported."""
        module, leaf = dotted.rsplit(".", 1)
        found = []
        for project, path, tree in self._files_with(leaf):
            if self.module_name(project, path) == module:
                continue
            for name, source in _imported(statements(tree.body), self.package_of(project, path)).items():
                if source == dotted:
                    found.append(Mention(project=project, file=self.relative(project, path), name=name))
        return sorted(found, key=lambda mention: (mention.project, mention.file, mention.name))

    def _patches(self, dotted: str) -> Iterator[Mention]:
        for project, path, tree in self._files_with(dotted.rsplit(".", 1)[1]):
            for nodes, names in _scopes(tree, self.package_of(project, path)):
                for written in _put_there(nodes, dotted, names):
                    source = _resolved(written, names)
                    found = self.find(source)
                    yield Mention(project=project, file=self.relative(project, path), name=found.name if found else source)

    def _files_with(self, text: str) -> Iterator[tuple[str, Path, ast.Module]]:
        """Parsed files of all projects that hold the text; reading is cheaper than parsing."""
        for project, paths in self.files.items():
            for path in paths:
                if text in self.text(path):
                    yield project, path, self.tree(path)


def _imported(statements: Iterable[ast.AST], package: Sequence[str]) -> dict[str, str]:
    """Name -> dotted name it is imported from."""
    found = {}
    for statement in statements:
        if isinstance(statement, ast.ImportFrom):
            module = module_of(statement, package)
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
