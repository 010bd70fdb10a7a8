"""How messages show a value that was found: neither long nor deep values are written out."""

from __future__ import annotations

from reprlib import Repr
from typing import Any

_SHORT = Repr()
_SHORT.maxstring = _SHORT.maxother = 60


def shown(value: Any) -> str:
    """The value, shortened."""
    return _SHORT.repr(value)


def kind(value: Any) -> str:
    """Type and value, shortened."""
    return f"{type(value).__name__} {shown(value)}"


def is_empty(value: Any) -> bool:
    """Whether a key says nothing: null, an empty text or list, or the text of an empty list, as trainers write it where a key is unused."""
    return value is None or value in ("", "[]", "{}", "null") or (isinstance(value, (list, tuple, dict)) and not value)
