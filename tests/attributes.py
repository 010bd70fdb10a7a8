"""Every attribute of loaded modules, and which of them changed: so that a test can say that only the ledger's targets did."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Sequence


@dataclass(frozen=True, kw_only=True)
class Change:
    """One attribute that was rebound."""

    name: str
    """Dotted: module.attribute or module.Class.attribute."""
    before: Any
    """None if it is new."""
    after: Any
    """None if it is gone."""


def snapshot(packages: Sequence[str]) -> dict[str, Any]:
    """Dotted name -> object, of all attributes of the loaded modules of some packages and of the classes those define.

    The objects are held, so that none can be replaced by another at the same address.

    Args:
        packages: top-level names, for instance ("megatron", "mindspeed", "mindspeed_llm").
    """
    found: dict[str, Any] = {}
    for module_name, module in list(sys.modules.items()):
        if not isinstance(module, ModuleType) or module_name.split(".")[0] not in packages:
            continue
        for name, value in list(vars(module).items()):
            found[f"{module_name}.{name}"] = value
            # by type(): isinstance would ask proxies for what they stand for, and wake them
            if issubclass(type(value), type) and value.__module__ == module_name:
                _add_class(found, f"{module_name}.{value.__qualname__}", value)
    return found


def difference(before: dict[str, Any], after: dict[str, Any], *, new_modules: bool = False) -> list[Change]:
    """Attributes whose object is another one.

    Args:
        before: snapshot.
        after: later snapshot of the same packages.
        new_modules: count attributes of modules that were not loaded before; a module that an import brings in is not a change of it.

    Returns:
        Changes sorted by name.
    """
    loaded = {name.rsplit(".", 1)[0] for name in before}
    changes = []
    for name in sorted({*before, *after}):
        if name in before and name in after:
            changed = before[name] is not after[name]
        else:
            # importing a submodule sets it as an attribute of its package
            fresh = isinstance(after.get(name), ModuleType) or name.rsplit(".", 1)[0] not in loaded
            changed = new_modules or not fresh
        if changed:
            changes.append(Change(name=name, before=before.get(name), after=after.get(name)))
    return changes


def _add_class(found: dict[str, Any], name: str, owner: type) -> None:
    for inner, value in list(vars(owner).items()):
        # the interpreter makes these anew by itself
        if inner not in ("__dict__", "__weakref__", "__annotations__", "__abstractmethods__", "_abc_impl"):
            found[f"{name}.{inner}"] = value
