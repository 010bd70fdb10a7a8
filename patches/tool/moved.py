"""What two sets of upstream versions say differently about the ledger's names, and where a name that is gone may be now.

It only reads syntax trees. A suggestion is a place to look at, not a verdict: a person reads both functions.
"""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal, Optional, Union

from mindspeed_vita.integration.patching import signatures
from mindspeed_vita.integration.patching.ledger import Ledger
from mindspeed_vita.integration.patching.sources import statements
from mindspeed_vita.integration.patching.starting import missing_imports, used_names
from patches.tool.checkout import Checkouts

LIKELY = 0.5
"""Share of words in common from which on a definition of another name is suggested."""
LIKELY_NEAR = 0.25
"""The same in the module where the name was."""
_SUGGESTED = 3

_Node = Union[ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef]


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where something is defined."""

    name: str
    """Dotted."""
    file: str
    """Relative to the checkout."""
    line: int
    alike: float = 1.0
    """Share of its words that it has in common with what is looked for."""


@dataclass(frozen=True, kw_only=True)
class Move:
    """One name, in the old versions and in the new ones."""

    part: Literal["patch", "seam", "import"]
    target: str
    change: Literal["gone", "signature", "place", "body"]
    before: Optional[Place]
    """None: it is not defined in the old versions either, for instance a module or a constant."""
    now: Optional[Place]
    """None: gone."""
    told: str
    """What is different in its signature."""
    suggestions: tuple[Place, ...]
    """Where something that is gone may be now, the likeliest first."""


class Definitions:
    """All functions, classes and methods of one project, by dotted name."""

    def __init__(self, sources: Checkouts, project: str) -> None:
        self._nodes: dict[str, tuple[Place, _Node]] = {}
        self._words: dict[str, Counter[str]] = {}
        for path in sources.files[project]:
            file = sources.relative(project, path)
            for name, node in _defined(sources.tree(path).body, sources.module_name(project, path)):
                self._nodes[name] = (Place(name=name, file=file, line=node.lineno), node)

    def place(self, name: str) -> Optional[Place]:
        """Where a name is defined."""
        found = self._nodes.get(name)
        return found[0] if found else None

    def is_class(self, name: str) -> bool:
        """Whether a name that is defined here is a class."""
        return isinstance(self._nodes[name][1], ast.ClassDef)

    def words(self, name: str) -> Counter[str]:
        """The names that occur in a definition, with how often; empty where there is none."""
        if name not in self._words:
            found = self._nodes.get(name)
            self._words[name] = _words(found[1]) if found else Counter()
        return self._words[name]

    def like(self, name: str, old: Definitions) -> tuple[Place, ...]:
        """Definitions that a name of older sources may have become, the likeliest first.

        Those whose last part is the same; where there are none, those of the same kind that share enough words with it.
        """
        module, leaf = name.rsplit(".", 1)
        words = old.words(name)
        named = [place for place, _ in self._nodes.values() if place.name.rsplit(".", 1)[1] == leaf]
        found = [self._place_of(place, words) for place in named]
        if not named and words:
            kind = [place for place, _ in self._nodes.values() if self.is_class(place.name) == old.is_class(name)]
            compared = [self._place_of(place, words) for place in kind if not place.name.endswith("__")]
            found = [each for each in compared if each.alike >= (LIKELY_NEAR if each.name.startswith(f"{module}.") else LIKELY)]
        return tuple(sorted(found, key=lambda place: (-place.alike, place.name))[:_SUGGESTED])

    def _place_of(self, place: Place, words: Counter[str]) -> Place:
        return replace(place, alike=round(_overlap(words, self.words(place.name)), 2))


def moves(ledger: Ledger, before: Checkouts, now: Checkouts) -> list[Move]:
    """Every name of the ledger that is not as it was, then every name that one project imports from another and that is gone.

    Args:
        ledger: says which names matter.
        before: checkouts that the ledger was written for.
        now: those to move to.
    """
    old = {each.project: Definitions(before, each.project) for each in ledger.upstreams}
    new = {each.project: Definitions(now, each.project) for each in ledger.upstreams}
    found = [_move("patch", patch.target, patch.upstream, before, now, old, new) for patch in ledger.patches]
    found += [_move("seam", seam.target, seam.upstream, before, now, old, new) for seam in ledger.seams]
    owners = {each.package: each.project for each in ledger.upstreams}
    used = {"imports": used_names(ledger, now)}
    for name in missing_imports([{"imports": used_names(ledger, before)}], used):
        project = owners[name.split(".")[0]]
        found.append(_gone("import", name, old[project], new[project]))
    return [move for move in found if move is not None]


def _move(
    part: Literal["patch", "seam"],
    target: str,
    project: str,
    before: Checkouts,
    now: Checkouts,
    old: dict[str, Definitions],
    new: dict[str, Definitions],
) -> Optional[Move]:
    was, is_now = before.find(target), now.find(target)
    if is_now is None:
        return _gone(part, was.name if was else target, old[project], new[project], target)
    if was is None or was == is_now:
        return None
    told = signatures.difference(was.signature or "()", is_now.signature or "()") or ""
    change: Literal["signature", "place", "body"] = "signature" if told else "place" if was.name != is_now.name else "body"
    places = {"before": old[was.project].place(was.name), "now": new[is_now.project].place(is_now.name)}
    return Move(part=part, target=target, change=change, told=told, suggestions=(), **places)


def _gone(part: Literal["patch", "seam", "import"], name: str, old: Definitions, new: Definitions, target: str = "") -> Move:
    suggestions = new.like(name, old)
    return Move(part=part, target=target or name, change="gone", before=old.place(name), now=None, told="", suggestions=suggestions)


def _defined(body: Sequence[ast.stmt], inside: str) -> Iterator[tuple[str, _Node]]:
    for statement in statements(body):
        if isinstance(statement, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            name = f"{inside}.{statement.name}"
            yield name, statement
            if isinstance(statement, ast.ClassDef):
                yield from _defined(statement.body, name)


def _words(node: ast.AST) -> Counter[str]:
    found: Counter[str] = Counter()
    for part in ast.walk(node):
        if isinstance(part, ast.Name):
            found[part.id] += 1
        elif isinstance(part, ast.Attribute):
            found[part.attr] += 1
        elif isinstance(part, (ast.arg, ast.keyword)) and part.arg:
            found[part.arg] += 1
    return found


def _overlap(one: Counter[str], other: Counter[str]) -> float:
    """Words in both, counted, over words in either."""
    either = sum((one | other).values())
    return sum((one & other).values()) / either if either else 0.0
