"""Accuracies of records: in all, by group, and of questions whose options were turned in a circle."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Optional

from mindspeed_vita.wording import counted

METHODS = ("likelihood", "generation")
"""How an answer is found: the most likely letter, or what the generated text says."""


@dataclass(frozen=True)
class Score:
    """Right answers of some questions."""

    right: int
    total: int

    @property
    def accuracy(self) -> Optional[float]:
        """A share; None of no questions."""
        return self.right / self.total if self.total else None


def scores(records: Iterable[Mapping[str, Any]], method: str) -> dict[str, dict[str, Score]]:
    """By name of the grouping and value: {"all": {"all": ...}, "duration": {"short": ...}}.

    Records with an error, without a known answer, or that the method does not answer (likelihood, for an open question) do not count.

    Args:
        records: of run.py.
        method: one of METHODS.
    """
    found: dict[str, dict[str, list[bool]]] = defaultdict(lambda: defaultdict(list))
    circles: dict[str, list[bool]] = defaultdict(list)
    for record in records:
        right = record.get("right", {}).get(method)
        if right is None:
            continue
        found["all"]["all"].append(right)
        for group, value in record["groups"].items():
            found[group][value].append(right)
        if record.get("circle"):
            circles[record["circle"]].append(right)
    if any(len(rows) > 1 for rows in circles.values()):
        found["circular"]["all rows of a question right"] = [all(rows) for rows in circles.values()]
    return {group: {value: Score(sum(rows), len(rows)) for value, rows in values.items()} for group, values in found.items()}


def summary(records: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Everything that is counted, for JSON."""
    kept = list(records)
    methods = {
        method: {
            group: {value: {**asdict(score), "accuracy": score.accuracy} for value, score in values.items()}
            for group, values in scores(kept, method).items()
        }
        for method in METHODS
    }
    errors = sum("error" in record for record in kept)
    unscored = sum("generation" in record and list(record["right"]) == ["generation"] for record in kept)
    unknown = sum("error" not in record and not record["right"] for record in kept)
    unread = sum(record.get("generation") is None and "generation" in record.get("right", {}) for record in kept)
    return {
        "rows": len(kept),
        "errors": errors,
        "without_answer": unknown,
        "no_letter_found": unread,
        "no_likelihood": unscored,
        "accuracy": methods,
    }


def strict(result: Mapping[str, Any], method: str) -> tuple[Score, str]:
    """The score that a gate looks at: a row that has no answer of the method, because something failed, counts as wrong.

    Args:
        result: of summary.
        method: one of METHODS.

    Returns:
        The score over all rows, and what was counted as wrong, for people; empty: nothing.
    """
    failed = {"with an error": result["errors"]}
    if method == "likelihood":
        failed["whose letters have no likelihood"] = result["no_likelihood"]
    scored = result["accuracy"][method].get("all", {}).get("all", {"right": 0, "total": 0})
    said = " and ".join(f"{counted(number, 'row')} {why}" for why, number in failed.items() if number)
    return Score(scored["right"], scored["total"] + sum(failed.values())), said


def table(results: Mapping[str, Mapping[str, Any]]) -> list[list[str]]:
    """Lines of cells: one for each group's value, two columns for each entry (a number of frames). The first line is the head.

    Where rows failed, the last line says how many.

    Args:
        results: summaries by the name of their column.
    """
    lines = [["", "", "rows", *(f"{name} {method}" for name in results for method in METHODS)]]
    order: dict[tuple[str, str], int] = {}
    for result in results.values():
        for method in METHODS:
            for group, values in result["accuracy"][method].items():
                for value, score in values.items():
                    order[group, value] = max(order.get((group, value), 0), score["total"])
    groups = list(dict.fromkeys(group for group, _ in order))
    for group, value in sorted(order, key=lambda key: (groups.index(key[0]), _by_size(key[1]))):
        cells = [
            _percent(result["accuracy"][method].get(group, {}).get(value)) for result in results.values() for method in METHODS
        ]
        lines.append(["" if group == value else group, value, str(order[group, value]), *cells])
    if any(result["errors"] for result in results.values()):
        cells = [f"{result['errors']:,} of {result['rows']:,}" for result in results.values() for _ in METHODS]
        lines.append(["", "rows that failed, not in the accuracies", "", *cells])
    return lines


def _by_size(value: str) -> tuple[int, float, str]:
    """Durations in the order of their length, numbers by size, all else by name."""
    words = ("short", "medium", "long")
    if value in words:
        return 0, words.index(value), value
    return (1, float(value), value) if value.replace(".", "", 1).isdigit() else (2, 0.0, value)


def _percent(score: Optional[Mapping[str, Any]]) -> str:
    return "" if score is None or score["accuracy"] is None else f"{100 * score['accuracy']:.1f}"
