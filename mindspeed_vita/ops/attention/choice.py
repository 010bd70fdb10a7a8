"""Which backend serves a call: the named one, or the first that does not refuse; a slower one never without a word."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import Optional, TypeVar

_Backend = TypeVar("_Backend")
_said: set[str] = set()


def choose(backends: Mapping[str, _Backend], refusal: Callable[[_Backend], Optional[str]], name: Optional[str]) -> _Backend:
    """Picks a backend.

    Args:
        backends: by name, fastest first.
        refusal: why a backend cannot serve this call; None if it can.
        name: the backend that was asked for; None takes the first that does not refuse, and says so when it is not the fastest.

    Raises:
        ValueError: no backend has that name, or none can serve the call, with every reason.
    """
    if name is not None and name not in backends:
        raise ValueError(f"attention backend {name!r} is unknown; use one of {', '.join(backends)}")
    reasons: list[str] = []
    for candidate in [name] if name else list(backends):
        reason = refusal(backends[candidate])
        if reason is None:
            if reasons:
                _say_once(f"attention: served by {candidate}, which is slower ({'; '.join(reasons)})")
            return backends[candidate]
        reasons.append(f"{candidate}: {reason}")
    raise ValueError("no attention backend can serve this call: " + "; ".join(reasons))


def _say_once(line: str) -> None:
    if line not in _said:
        _said.add(line)
        print(line, file=sys.stderr, flush=True)
