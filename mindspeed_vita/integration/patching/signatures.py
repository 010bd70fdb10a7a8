"""Signatures of functions in one written form, whether read from source or from an imported object.

Annotations are left out, and a default that is no literal is written `...`, which agrees with every default.
"""

from __future__ import annotations

import ast
import inspect
from typing import Any, Iterator, Optional, Union

FunctionNode = Union[ast.FunctionDef, ast.AsyncFunctionDef]
_Parameters = dict[str, tuple[str, Optional[str]]]


def of_node(node: FunctionNode) -> str:
    """The signature of a function definition, for instance `(model, *args, strict=True)`."""
    return _write(_parameters(node.args))


def of_object(function: Any) -> Optional[str]:
    """The signature of an imported function or class; decorators that keep `__wrapped__` are looked through.

    Returns:
        None where Python knows none (some builtins).
    """
    if inspect.isclass(function):
        function = function.__init__
    try:
        found = inspect.signature(function)
    except (ValueError, TypeError):
        return None
    parameters: _Parameters = {}
    for parameter in found.parameters.values():
        default = None if parameter.default is parameter.empty else _literal(parameter.default)
        parameters[parameter.name] = (_KINDS[parameter.kind], default)
    return _write(parameters)


def difference(expected: str, found: str) -> Optional[str]:
    """What a signature has that the expected one has not, or the other way round; None when they agree.

    Raises:
        ValueError: `expected` is not written like a signature.
    """
    wanted, given = _read(expected), _read(found)
    notes = [f"{name!r} is gone" for name in wanted if name not in given]
    notes += [f"{name!r} is new" for name in given if name not in wanted]
    for name in wanted:
        if name not in given:
            continue
        (kind, default), (kind_now, default_now) = wanted[name], given[name]
        if kind != kind_now:
            notes.append(f"{name!r} is {kind_now}, not {kind}")
        if default != default_now and not (default is not None and default_now is not None and "..." in (default, default_now)):
            notes.append(f"{name!r} {_default(default_now)}, not {_default(default)}")
    common = [name for name in wanted if name in given]
    if common != [name for name in given if name in wanted]:
        notes.append("the order changed")
    return "; ".join(notes) or None


_KINDS = {
    inspect.Parameter.POSITIONAL_ONLY: "positional",
    inspect.Parameter.POSITIONAL_OR_KEYWORD: "plain",
    inspect.Parameter.VAR_POSITIONAL: "*",
    inspect.Parameter.KEYWORD_ONLY: "keyword",
    inspect.Parameter.VAR_KEYWORD: "**",
}


def _read(text: str) -> _Parameters:
    try:
        node = ast.parse(f"def f{text}: pass").body[0]
    except SyntaxError:
        raise ValueError(f"{text!r} is no signature; write it like (model, *args, strict=True)") from None
    assert isinstance(node, ast.FunctionDef)
    return _parameters(node.args)


def _parameters(arguments: ast.arguments) -> _Parameters:
    positional = [*((argument, "positional") for argument in arguments.posonlyargs), *((argument, "plain") for argument in arguments.args)]
    defaults: list[Optional[ast.expr]] = [None] * (len(positional) - len(arguments.defaults)) + list(arguments.defaults)
    found: _Parameters = {argument.arg: (kind, _default_text(default)) for (argument, kind), default in zip(positional, defaults)}
    if arguments.vararg:
        found[arguments.vararg.arg] = ("*", None)
    for argument, default in zip(arguments.kwonlyargs, arguments.kw_defaults):
        found[argument.arg] = ("keyword", _default_text(default))
    if arguments.kwarg:
        found[arguments.kwarg.arg] = ("**", None)
    return found


def _default_text(node: Optional[ast.expr]) -> Optional[str]:
    if node is None:
        return None
    try:
        return _literal(ast.literal_eval(node))
    except (ValueError, TypeError):
        return "..."


def _literal(value: Any) -> str:
    """repr of plain values, `...` for everything else."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return repr(value) if type(value) in (type(None), bool, int, float, str) else "..."
    if type(value) in (tuple, list, dict, set) and not value:
        return repr(value)
    if type(value) in (tuple, list):
        return repr(value) if "..." not in [_literal(part) for part in value] else "..."
    return "..."


def _write(parameters: _Parameters) -> str:
    return f"({', '.join(_written(parameters))})"


def _written(parameters: _Parameters) -> Iterator[str]:
    last_kind, starred = None, False
    for name, (kind, default) in parameters.items():
        if last_kind == "positional" and kind != "positional":
            yield "/"
        if kind == "keyword" and not starred:
            yield "*"
        starred = starred or kind in ("*", "keyword")
        prefix = kind if kind in ("*", "**") else ""
        yield f"{prefix}{name}" + ("" if default is None else f"={default}")
        last_kind = kind
    if last_kind == "positional":
        yield "/"


def _default(text: Optional[str]) -> str:
    return "has no default" if text is None else f"defaults to {text}"
