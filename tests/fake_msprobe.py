"""A stand-in for msprobe that notes how it is called."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import pytest


def stand_in(monkeypatch: pytest.MonkeyPatch, refuses: str = "") -> list[Any]:
    """Puts it where msprobe would be imported from.

    Args:
        monkeypatch: takes it away again.
        refuses: what it says to every file; empty: it takes them.

    Returns:
        Its calls from now on.
    """
    calls: list[Any] = []

    class CodedException(Exception):
        """msprobe's base class."""

    class PrecisionDebugger:
        """The methods that a run calls, which are class methods in msprobe too."""

        def __init__(self, config_path: str, dump_path: str) -> None:
            if refuses:
                raise CodedException(refuses)
            calls.append(("PrecisionDebugger", config_path, dump_path))

        def set_init_step(self, step: int) -> None:
            calls.append(("set_init_step", step))

        def start(self, model: Any) -> None:
            calls.append(("start", model))

        def stop(self) -> None:
            calls.append("stop")

        def step(self) -> None:
            calls.append("step")

    for name in ("msprobe", "msprobe.core", "msprobe.core.common", "msprobe.core.common.exceptions", "msprobe.pytorch"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    sys.modules["msprobe.core.common.exceptions"].CodedException = CodedException  # type: ignore[attr-defined]
    sys.modules["msprobe.pytorch"].PrecisionDebugger = PrecisionDebugger  # type: ignore[attr-defined]
    return calls
