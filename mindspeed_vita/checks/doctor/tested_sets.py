"""Sets of versions that the tests ran on together, from tested_sets.json. scripts/versions.py shows them in docs/guides/versions.md."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Optional

from mindspeed_vita.checks.doctor.matrix import line

FILE = Path(__file__).with_name("tested_sets.json")


@dataclass(frozen=True, kw_only=True)
class TestedSet:
    """One environment. Each version is the one that was installed, Python's without its last number."""

    python: str
    torch: str
    cores: tuple[str, ...]
    """Releases of megatron-core, one after the other."""
    torch_npu: str
    """On the simulated Ascend; empty where it was not tested."""
    transformers: str
    ran: str
    """Which tests."""
    date: str

    def describe(self) -> str:
        """The set in one line."""
        return f"Python {self.python}, torch {self.torch}, megatron-core {' or '.join(self.cores)}"

    def matches(self, python: str, torch: str, core: str) -> int:
        """How many of the three lie on this set's lines (the first two numbers of a version)."""
        same = (line(python) == line(self.python), line(torch) == line(self.torch), line(core) in map(line, self.cores))
        return sum(same)


def tested_sets() -> tuple[TestedSet, ...]:
    """All sets of the file."""
    rows = json.loads(FILE.read_text(encoding="utf-8"))
    return tuple(TestedSet(**{**row, "cores": tuple(row["cores"])}) for row in rows)


def closest(python: str, torch: Optional[str], core: Optional[str]) -> tuple[TestedSet, bool]:
    """The tested set that shares most lines with an installation, and whether it shares all three."""
    best = max(tested_sets(), key=lambda one: one.matches(python, torch or "", core or ""))
    return best, best.matches(python, torch or "", core or "") == 3
