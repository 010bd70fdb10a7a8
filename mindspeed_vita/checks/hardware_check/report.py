"""Outcomes of the checks: lines while they run, JSON for machines, and a page in Markdown for people."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

from mindspeed_vita.files.writing import write_text


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """One check: a number and the largest one that is right."""

    name: str
    value: float
    limit: float
    note: str = ""
    section: str = ""

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
        seconds: of each section that ran.
        skipped: sections that did not run, and why.
        running: the section that runs now. A report that was written while it ran says so.
        say: takes each line as it is known.
    """

    say: Callable[[str], None] = print
    facts: dict[str, str] = field(default_factory=dict)
    outcomes: list[Outcome] = field(default_factory=list)
    numbers: dict[str, float] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    running: str = ""
    _section_of_fact: dict[str, str] = field(default_factory=dict)

    def fact(self, name: str, value: object) -> None:
        """Notes a fact."""
        self.facts[name], self._section_of_fact[name] = str(value), self.running
        self.say(f"       {name}: {value}")

    def measured(self, name: str, value: float) -> None:
        """Notes a number for machines; what people read is a fact."""
        self.numbers[name] = value

    def check(self, name: str, value: float, limit: float, note: str = "") -> None:
        """Notes a check."""
        outcome = Outcome(name=name, value=value, limit=limit, note=note, section=self.running)
        self.outcomes.append(outcome)
        verdict = "PASS" if outcome.passed else "FAIL"
        self.say(f"{verdict}   {name}: {value:.2e}, at most {limit:.2e}" + (f" ({note})" if note else ""))

    def section(self, name: str, run: Callable[[Report], None]) -> None:
        """Runs some checks; one that raises fails, and the sections after it still run: on new hardware they are worth knowing too."""
        self.say(f"== {name}")
        started, self.running = time.perf_counter(), name
        try:
            run(self)
        except (RuntimeError, ValueError, NotImplementedError, AssertionError, AttributeError, TypeError, OSError) as error:
            text = f"{type(error).__name__}: {error}"
            self.check(name, float("inf"), 0.0, text if len(text) < 400 else f"{text[:400]} ...")
        self.seconds[name], self.running = time.perf_counter() - started, ""

    def skip(self, name: str, reason: str) -> None:
        """Notes that a section does not run."""
        self.skipped[name] = reason
        self.say(f"== {name}: skipped, {reason}")

    @property
    def failed(self) -> list[Outcome]:
        """Checks that did not pass."""
        return [outcome for outcome in self.outcomes if not outcome.passed]

    @property
    def passed(self) -> bool:
        """Whether there were checks, and all passed."""
        return bool(self.outcomes) and not self.failed

    def write(self, path: Path) -> None:
        """Writes everything as JSON; what cannot be said in JSON (infinity, NaN) becomes text."""
        rows = [{**asdict(outcome), "value": _number(outcome.value), "passed": outcome.passed} for outcome in self.outcomes]
        content = {"passed": self.passed, "unfinished": self.running, "skipped": self.skipped, "seconds": self.seconds}
        content = {**content, "facts": self.facts, "numbers": self.numbers, "checks": rows}
        write_text(path, json.dumps(content, indent=1) + "\n")

    def page(self, title: str) -> str:
        """The report in Markdown: the machine, each section's checks, what was measured, what failed and what was left out."""
        lines = [f"# {title}", "", *self._table_of_facts(""), *self._table_of_sections()]
        failed = [(f"{one.name}: {one.value:.2e}, at most {one.limit:.2e}", one.note) for one in self.failed]
        lines += [f"- failed: {_cell(text)}" + (f" ({_cell(note)})" if note else "") for text, note in failed]
        lines += [f"- left out: {name}: {reason}" for name, reason in self.skipped.items()]
        lines += [f"- the run ended while this section ran: {self.running}"] if self.running else []
        lines += [""] if lines[-1] else []
        for name in self.seconds:
            table = self._table_of_facts(name)
            lines += [f"## {name}", "", *table] if table else []
        return "\n".join(lines).rstrip() + "\n"

    def _table_of_facts(self, section: str) -> list[str]:
        rows = [f"| {_cell(name)} | {_cell(value)} |" for name, value in self.facts.items() if self._section_of_fact[name] == section]
        return ["| | |", "|---|---|", *rows, ""] if rows else []

    def _table_of_sections(self) -> list[str]:
        lines = ["| section | checks passed | worst error / its limit | seconds |", "|---|---|---|---|"]
        for name, seconds in self.seconds.items():
            found = [outcome for outcome in self.outcomes if outcome.section == name]
            passed = f"{sum(outcome.passed for outcome in found)} of {len(found)}" if found else "measured only"
            worst = max((outcome.value / outcome.limit for outcome in found if outcome.limit), default=None)
            lines.append(f"| {name} | {passed} | {'' if worst is None else f'{worst:.2f}'} | {seconds:.0f} |")
        return [*lines, ""]


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _number(value: float) -> float | str:
    return value if abs(value) < float("inf") else str(value)
