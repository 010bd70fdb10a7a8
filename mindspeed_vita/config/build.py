"""From nested values to a dataclass of settings. pydantic checks every value; this file turns what it found into our messages."""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from collections.abc import Collection, Iterator, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from mindspeed_vita.config.aliases import hint

if TYPE_CHECKING:
    from pydantic import TypeAdapter
    from pydantic_core import ErrorDetails

_T = TypeVar("_T")
_TYPES = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
_BOUNDS = ("greater_than_equal", "greater_than", "less_than_equal", "less_than", "finite_number")
_ADAPTERS: dict[type, TypeAdapter[Any]] = {}
_UNKNOWN_KEY = ("unexpected_keyword_argument", "invalid_key")


def build(
    cls: type[_T], content: Any, where: str, *, prefix: str = "", root: type, known: Mapping[str, str] | None = None,
    overridden: Collection[str] = (),
) -> _T:  # fmt: skip
    """The dataclass of nested values.

    Args:
        cls: a dataclass whose fields have the types of kinds.py.
        content: its values by name.
        where: file, for the message.
        prefix: what the names of the keys begin with, with a dot at the end.
        root: the whole recipe's dataclass, in which a key in the wrong section is looked for.
        known: problems that were found before, by key.
        overridden: keys whose values do not come from the file but from the command line.

    Raises:
        ValueError: one message that lists every key with a problem.
    """
    from pydantic import ValidationError

    problems = dict(known or {})
    built = None
    try:
        built = _adapter(cls).validate_python(content)
    except ValidationError as error:
        for key, problem in _problems(error.errors(include_url=False), cls, prefix, root, overridden):
            # what has a problem already is not looked at again: an unset variable has no type
            if key.partition("[")[0] not in (known or {}):
                problems[key] = problem
    if problems or built is None:
        raise ValueError(listed(where, list(problems.values())))
    return built


def check(built: Any, where: str, *, prefix: str = "", root: type) -> None:
    """Refuses a dataclass of settings that build would not have made.

    Raises:
        ValueError: as build.
    """
    build(type(built), dataclasses.asdict(built), where, prefix=prefix, root=root)


def listed(where: str, problems: typing.Sequence[str]) -> str:
    """One message for all problems of a file."""
    if len(problems) == 1:
        return f"{where}: {problems[0]}"
    return f"{where}: {len(problems)} problems: " + "; ".join(f"({number}) {problem}" for number, problem in enumerate(problems, 1))


def _adapter(cls: type[_T]) -> TypeAdapter[_T]:
    from pydantic import TypeAdapter

    if cls not in _ADAPTERS:
        _ADAPTERS[cls] = TypeAdapter(cls)
    return _ADAPTERS[cls]


def _origin(key: str, overridden: Collection[str]) -> str:
    return " (from the command line)" if any(key == name or key.startswith((f"{name}.", f"{name}[")) for name in overridden) else ""


def _problems(
    errors: typing.Sequence[ErrorDetails], cls: type, prefix: str, root: type, overridden: Collection[str]
) -> Iterator[tuple[str, str]]:
    """(key, what is wrong with it) of each error."""
    with_wrong_items = {error["loc"][:-1] for error in errors if error["loc"] and isinstance(error["loc"][-1], int)}
    for error in errors:
        loc, kind = error["loc"], error["type"]
        if kind == "too_short" and loc in with_wrong_items:
            continue  # pydantic counts the right items only
        if kind in _UNKNOWN_KEY:
            *sections, last = loc
            name = str(last)  # a key may be a number
            loc = (*sections, name)
        key = prefix + _dotted(loc)
        origin = _origin(key, overridden)
        if kind in _UNKNOWN_KEY:
            fields = {item.name for item in dataclasses.fields(_annotation(cls, loc[:-1]))}
            yield key, f"unknown key {key}{origin}{hint(name, key.removesuffix(name), fields, root)}"
        elif kind in ("missing", "missing_argument", "missing_keyword_only_argument"):
            yield key, f"the key {key} is missing"
        elif kind == "section":
            yield key, f"{key.rstrip('.')} must be a section, found {error['input']!r}{origin}"
        else:
            yield key, f"{key}={error['input']!r}{origin}; expected {_expected(error, _annotation(cls, loc))}"


def _dotted(loc: tuple[int | str, ...]) -> str:
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in loc).removeprefix(".")


def _annotation(cls: type, loc: tuple[int | str, ...]) -> Any:
    """The type of a field with its kind, or the class of a section."""
    found: Any = cls
    for part in loc:
        found = typing.get_args(_bare(found))[0] if isinstance(part, int) else typing.get_type_hints(found, include_extras=True)[part]
        if typing.get_origin(found) in (typing.Union, types.UnionType):
            found = next(item for item in typing.get_args(found) if item is not type(None))
    return found


def _bare(annotation: Any) -> Any:
    return typing.get_args(annotation)[0] if typing.get_origin(annotation) is typing.Annotated else annotation


def _expected(error: ErrorDetails, annotation: Any) -> str:
    kind, value, context, bare = error["type"], error["input"], error.get("ctx") or {}, _bare(annotation)
    if kind == "literal_error":
        return _one_of(value, typing.get_args(bare))
    if kind == "one_of":
        return _one_of(value, context["names"], ", or one that a module in plugins registers" if context["plugins"] else "")
    if kind == "list":
        return "a list"
    if kind == "too_short":
        return f"at least one of {', '.join(typing.get_args(typing.get_args(bare)[0]))}"
    if kind in _BOUNDS:
        return next(metadata.bounds for metadata in annotation.__metadata__ if metadata.bounds)
    return f"{_TYPES.get(bare, str(bare))}, found {type(value).__name__}"


def _one_of(value: Any, names: Collection[Any], more: str = "") -> str:
    text = f"one of {', '.join(str(name) for name in names)}{more}"
    close = difflib.get_close_matches(value.lower(), [str(name) for name in names], n=1) if isinstance(value, str) else []
    return f"{text}; did you mean {close[0]}?" if close else text
