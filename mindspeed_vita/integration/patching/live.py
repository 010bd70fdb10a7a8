"""Imported upstream modules as they are: what a dotted name holds now, who has patched it, and who else holds it. Changes nothing."""

from __future__ import annotations

import importlib
import inspect
import sys
from dataclasses import dataclass
from types import CodeType, FunctionType, ModuleType
from typing import Any, Iterator, Optional

_CONTAINERS = (dict, list, tuple, set, frozenset)


@dataclass(frozen=True, kw_only=True)
class Attribute:
    """An attribute: where it is and what it holds."""

    owner: Any
    """Module or class."""
    name: str
    value: Any


class Missing(Exception):
    """A dotted name that does not exist; the message says from where on."""


def locate(dotted: str) -> Attribute:
    """Imports the module of a dotted name and finds the attribute.

    Raises:
        Missing: a module or an attribute is not there, or holds nothing that can be called: MindSpeed puts None where it patches a
            name that does not exist.
    """
    parts = dotted.split(".")
    module, end = _import(parts)
    owner: Any = module
    for depth, name in enumerate(parts[end:-1], start=end):
        if not hasattr(owner, name):
            raise Missing(f"{'.'.join(parts[:depth])} has no {name}")
        owner = getattr(owner, name)
    name = parts[-1]
    # vars: an inherited method is no attribute of this class, and a static method must not be unwrapped
    if name not in vars(owner):
        raise Missing(f"{'.'.join(parts[:-1])} has no {name}")
    value = vars(owner)[name]
    if not callable(function_of(value)):
        raise Missing(f"{dotted} is {value!r}, nothing that can be called")
    return Attribute(owner=owner, name=name, value=value)


def function_of(value: Any) -> Any:
    """What a static or class method wraps; anything else as it is."""
    return value.__func__ if isinstance(value, (staticmethod, classmethod)) else value


def layers(value: Any) -> list[str]:
    """Dotted names of the functions in an attribute, from the outermost: functools.wraps leaves a trace of what lies below.

    A wrapper calls itself what it wraps, so the module is taken from its globals, which nothing copies.
    """
    found = []
    function = function_of(value)
    while function is not None:
        if isinstance(function, FunctionType):
            found.append(f"{function.__globals__.get('__name__', '?')}.{_outer_name(function)}")
        else:
            found.append(f"{getattr(function, '__module__', '?')}.{getattr(function, '__qualname__', type(function).__qualname__)}")
        function = getattr(function, "__wrapped__", None)
    return found


def bottom(value: Any) -> Any:
    """The innermost function below all traced wrappers."""
    return inspect.unwrap(function_of(value))


def holders(value: Any, *, leave_out: tuple[Any, str]) -> list[str]:
    """Every attribute in sys.modules that holds the object: of modules, of their classes, and in their dicts, lists and tuples.

    Args:
        value: the object.
        leave_out: (owner, name) of one attribute not to be named.

    Returns:
        Dotted names, sorted.
    """
    found = set()
    for module_name, module in list(sys.modules.items()):
        if not isinstance(module, ModuleType):
            continue
        for name, held in list(vars(module).items()):
            if held is value and (module, name) != leave_out:
                found.add(f"{module_name}.{name}")
            # by type(): isinstance would ask proxies for what they stand for, and wake them
            elif issubclass(type(held), type) and held.__module__ == module_name:
                found.update(f"{module_name}.{held.__qualname__}.{inner}" for inner in _class_names(held, value, leave_out))
            elif type(held) in _CONTAINERS and _contains(held, value):  # a lazy subclass may import half a library when it is read
                found.add(f"{module_name}.{name}[...]")
    return sorted(found)


def _outer_name(function: FunctionType) -> str:
    """Of the function that made this one, or its own: `count_wrapper` for what count_wrapper returned, whatever that calls itself."""
    for name, value in list(function.__globals__.items()):
        if isinstance(value, FunctionType) and value.__globals__ is function.__globals__ and _has_code(value.__code__, function.__code__):
            return value.__code__.co_name if value.__code__.co_name in function.__globals__ else name
    # made inside a class: newer Pythons keep the name in the code, where functools.wraps cannot change it
    return str(getattr(function.__code__, "co_qualname", function.__qualname__)).split(".<locals>")[0]


def _has_code(outer: CodeType, code: CodeType) -> bool:
    return outer is code or any(_has_code(part, code) for part in outer.co_consts if isinstance(part, CodeType))


def _class_names(owner: type, value: Any, leave_out: tuple[Any, str]) -> Iterator[str]:
    for name, held in list(vars(owner).items()):
        if held is value and not (owner is leave_out[0] and name == leave_out[1]):
            yield name


def _contains(container: Any, value: Any) -> bool:
    # identity, not equality: comparing strangers may raise or be slow
    return any(part is value for part in list(container.values() if isinstance(container, dict) else container))


def _import(parts: list[str]) -> tuple[ModuleType, int]:
    """The module that the longest start of the name stands for, and that start's length."""
    module: Optional[ModuleType] = None
    for end in range(1, len(parts)):
        name = ".".join(parts[:end])
        try:
            module = importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name != name:
                raise Missing(f"{name} cannot be imported: {error}") from error
            if module is None:
                raise Missing(f"{name} is not installed") from None
            return module, end - 1
    assert module is not None
    return module, len(parts) - 1
