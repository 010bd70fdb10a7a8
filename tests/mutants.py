"""One place of a module's source changed for a while, everywhere in the package where something of that module is in use."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any


@contextmanager
def mutated(module: str, old: str, new: str) -> Iterator[None]:
    """Runs a module with `new` in the one place where its source says `old`."""
    original = importlib.import_module(module)
    source = Path(str(original.__file__)).read_text(encoding="utf-8")
    assert source.count(old) == 1, f"{module} has {source.count(old)} places like {old!r}"
    changed = ModuleType(module)
    changed.__file__ = original.__file__
    sys.modules[module] = changed  # dataclasses look their module up
    try:
        exec(compile(source.replace(old, new), f"{module} with {new!r}", "exec"), changed.__dict__)
        _replace(original, changed)
        yield
    finally:
        sys.modules[module] = original
        _replace(changed, original)


def _replace(before: ModuleType, after: ModuleType) -> None:
    """Puts a module, and the functions and classes that it defines, in the places of another's."""
    name = before.__name__
    own = {id(value): key for key, value in vars(before).items() if getattr(value, "__module__", None) == name}
    swaps: dict[int, Any] = {id(before): after, **{number: vars(after)[key] for number, key in own.items() if key in vars(after)}}
    for user in [module for key, module in sys.modules.items() if key.startswith("mindspeed_vita") and module is not before]:
        for key, value in list(vars(user).items()):
            if id(value) in swaps and user is not after:
                setattr(user, key, swaps[id(value)])
