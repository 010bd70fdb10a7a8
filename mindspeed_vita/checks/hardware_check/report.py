"""Outcomes of the checks: a table for people, JSON for machines."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """One check: a number and the largest one that is right."""

    name: str
    value: float
    limit: float
    note: str = ""

    @property
    def passed(self) -> bool:
        """NaN fails."""
        return self.value <= self.limit


@dataclass(kw_only=True)
class Report:
    """All that was found on a machine.

    Attributes:
        facts: versions, and measurements that are neither right nor wrong.
        outcomes: the checks so far.
        numbers: measurements for machines; the unit is in the name.
        say: takes each line as it is known.
    """

    say: Callable[[str], None] = print
    facts: dict[str, str] = field(default_factory=dict)
    outcomes: list[Outcome] = field(default_factory=list)
    numbers: dict[str, float] = field(default_factory=dict)

    def fact(self, name: str, value: object) -> None:
        """Notes a fact."""
        self.facts[name] = str(value)
        self.say(f"       {name}: {value}")

    def measured(self, name: str, value: float) -> None:
        """Notes a number for machines; what people read is a fact."""
        self.numbers[name] = value

    def check(self, name: str, value: float, limit: float, note: str = "") -> None:
        """Notes a check."""
        outcome = Outcome(name=name, value=value, limit=limit, note=note)
        self.outcomes.append(outcome)
        verdict = "PASS" if outcome.passed else "FAIL"
        self.say(f"{verdict}   {name}: {value:.2e}, at most {limit:.2e}" + (f" ({note})" if note else ""))

    def section(self, name: str, run: Callable[[Report], None]) -> None:
        """Runs some checks; one that raises fails, and the sections after it still run: on new hardware they are worth knowing too."""
        self.say(f"== {name}")
        try:
            run(self)
        except (RuntimeError, ValueError, NotImplementedError, AssertionError, AttributeError, TypeError) as error:
            text = f"{type(error).__name__}: {error}"
            self.check(name, float("inf"), 0.0, text if len(text) < 400 else f"{text[:400]} ...")

    @property
    def passed(self) -> bool:
        """Whether there were checks, and all passed."""
        return bool(self.outcomes) and all(outcome.passed for outcome in self.outcomes)

    def write(self, path: Path) -> None:
        """Writes everything as JSON; what cannot be said in JSON (infinity, NaN) becomes text."""
        rows = [{**asdict(outcome), "value": _number(outcome.value), "passed": outcome.passed} for outcome in self.outcomes]
        content = {"passed": self.passed, "facts": self.facts, "numbers": self.numbers, "checks": rows}
        path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def _number(value: float) -> float | str:
    return value if abs(value) < float("inf") else str(value)
