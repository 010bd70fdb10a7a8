"""Finds, by syntax trees, every place in source files that changes an attribute of a third-party module or class."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

OURS = ("mindspeed_vita", "patches", "tests")
CONTENT_CHANGES = (
    *("append", "extend", "insert", "pop", "remove", "reverse", "sort", "clear"),
    *("popitem", "setdefault", "update", "add", "discard"),
)
"""Methods that change a list, dict or set in place."""
SETTERS = ("setattr", "delattr", "object.__setattr__", "type.__setattr__", "mock.patch.object", "patch.object")
IMPORTERS = ("importlib.import_module", "import_module", "__import__")
PATCHERS = ("register_patch", "mock.patch", "patch")
UNREADABLE = "?"


@dataclass(frozen=True, order=True)
class Change:
    """A change of an attribute."""

    by: str
    """Dotted name of the function in which it stands."""
    target: str
    """Dotted name of the attribute. UNREADABLE stands where the source does not say it."""


def changes(path: Path, root: Path) -> Iterator[Change]:
    """Every change in a file.

    Args:
        path: the file.
        root: folder of the top-level packages, which dotted names start from.
    """
    name = ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__")
    tree = ast.parse(path.read_text(encoding="utf-8"))
    own = {*sys.stdlib_module_names, *OURS}
    yield from (change for change in _Scope(name).of(tree) if change.target.split(".")[0] not in own)


@dataclass
class _Scope:
    """A module, class or function, and the imported objects that its names stand for."""

    name: str
    known: dict[str, list[str]] = field(default_factory=dict)
    """Name -> dotted names of what it may stand for: several where a loop goes through them."""
    texts: dict[str, list[str]] = field(default_factory=dict)
    """Name -> strings that it may hold."""

    def of(self, scope: ast.AST) -> Iterator[Change]:
        nodes = list(_inside(scope))
        for node in nodes:
            self._bind(node)
        for node in nodes:
            for target in self._changed(node):
                yield Change(by=self.name, target=target)
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
                inner = _Scope(f"{self.name}.{node.name}", dict(self.known), dict(self.texts))
                for part in ast.walk(node.args) if not isinstance(node, ast.ClassDef) else ():
                    if isinstance(part, ast.arg):
                        inner.known.pop(part.arg, None)
                yield from inner.of(node)

    def _bind(self, node: ast.AST) -> None:
        if isinstance(node, ast.Import):
            for alias in node.names:
                self._name(alias.asname or alias.name.split(".")[0], [alias.name if alias.asname else alias.name.split(".")[0]])
        elif isinstance(node, ast.ImportFrom) and not node.level:
            for alias in node.names:
                self._name(alias.asname or alias.name, [f"{node.module}.{alias.name}"])
        elif isinstance(node, (ast.Assign, ast.For)):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            value = node.value if isinstance(node, ast.Assign) else node.iter
            for target in targets:
                pairs = [(target, value)]
                if isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple):
                    pairs = list(zip(target.elts, value.elts))
                for part, given in pairs:
                    if isinstance(part, ast.Name):
                        self._name(part.id, self._objects(given))
                        self.texts[part.id] = self._strings(given)

    def _name(self, name: str, objects: list[str]) -> None:
        self.known[name] = objects

    def _objects(self, node: ast.expr) -> list[str]:
        """Dotted names of the imported objects that an expression may stand for."""
        if isinstance(node, ast.Name):
            return self.known.get(node.id, [])
        if isinstance(node, ast.Attribute):
            return [f"{owner}.{node.attr}" for owner in self._objects(node.value)]
        if isinstance(node, (ast.Tuple, ast.List)):
            return [each for part in node.elts for each in self._objects(part)]
        if isinstance(node, ast.Call) and ast.unparse(node.func) in IMPORTERS:
            return self._strings(node.args[0]) or [UNREADABLE]
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "getattr":
            return list(self._named(self._objects(node.args[0]), node.args[1]))
        if isinstance(node, ast.Subscript) and ast.unparse(node.value) == "sys.modules":
            return self._strings(node.slice) or [UNREADABLE]
        return []

    def _strings(self, node: ast.expr) -> list[str]:
        if isinstance(node, ast.Constant):
            return [node.value] if isinstance(node.value, str) else []
        if isinstance(node, ast.Name):
            return self.texts.get(node.id, [])
        return [each for part in node.elts for each in self._strings(part)] if isinstance(node, (ast.Tuple, ast.List)) else []

    def _changed(self, node: ast.AST) -> Iterator[str]:
        if isinstance(node, (ast.Attribute, ast.Subscript)) and isinstance(node.ctx, (ast.Store, ast.Del)):
            yield from self._set(node)
        if not isinstance(node, ast.Call):
            return
        called = ast.unparse(node.func)
        if called in SETTERS and len(node.args) > 1:
            own = ast.unparse(node.args[0]) in ("self", "cls")
            yield from self._named(self._objects(node.args[0]) or ([] if own else [UNREADABLE]), node.args[1])
        elif called in PATCHERS or called.endswith(".register_patch"):
            yield from self._strings(node.args[0]) or [UNREADABLE]
        elif isinstance(node.func, ast.Attribute) and node.func.attr in CONTENT_CHANGES:
            # without a dot it is a function of a module: numpy.sort
            yield from (held for held in self._objects(node.func.value) if "." in held)
            yield from (f"{owner}.{UNREADABLE}" for owner in self._owners_of_dict(node.func.value))

    def _set(self, node: ast.Attribute | ast.Subscript) -> Iterator[str]:
        if isinstance(node, ast.Attribute):
            yield from self._objects(node)
        else:
            yield from self._named(self._owners_of_dict(node.value), node.slice)
            yield from self._objects(node) if ast.unparse(node.value) == "sys.modules" else ()

    def _owners_of_dict(self, node: ast.expr) -> list[str]:
        """The objects whose attributes a dict holds: x of `vars(x)` and of `x.__dict__`."""
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "vars" and node.args:
            return self._objects(node.args[0])
        return self._objects(node.value) if isinstance(node, ast.Attribute) and node.attr == "__dict__" else []

    def _named(self, owners: list[str], name: ast.expr) -> Iterator[str]:
        yield from (f"{owner}.{each}" for owner in owners for each in self._strings(name) or [UNREADABLE])


def _inside(scope: ast.AST) -> Iterator[ast.AST]:
    """The nodes of a scope in the order of the source, without those of functions and classes in it, whose own nodes are included."""
    for child in ast.iter_child_nodes(scope):
        yield child
        if not isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            yield from _inside(child)
