"""Names that train.objective may have. engine/objective.py has what they stand for."""

from __future__ import annotations

SUPERVISED = "supervised"
"""The default: cross-entropy of the supervised tokens."""

_NAMES = [SUPERVISED]


def objective_names() -> tuple[str, ...]:
    """Names that a recipe may give."""
    return tuple(_NAMES)


def add_objective_name(name: str) -> None:
    """Makes a name known to the checks of a recipe; doing so again changes nothing."""
    if name not in _NAMES:
        _NAMES.append(name)
