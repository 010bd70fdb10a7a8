"""The table of a soak of training: what the starts with each kind of fault did, and the sums over several soaks."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mindspeed_vita.files.publish import whole_file
from tests.train_faults import KINDS


@dataclass
class Row:
    """What the starts with one kind of fault did."""

    starts: int = 0
    by_command: int = 0
    fired: int = 0
    most_lost: int = 0
    losses: int = 0
    corruptions: int = 0
    curves: int = 0
    """Curves or weights that are not those of the straight run."""
    statuses: Counter[str] = field(default_factory=Counter)

    def add(self, other: Row) -> None:
        """Adds the starts of another soak."""
        for name in ("starts", "by_command", "fired", "losses", "corruptions", "curves"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.most_lost = max(self.most_lost, other.most_lost)
        self.statuses.update(other.statuses)


def table(rows: dict[str, Row], runs: int) -> str:
    """One line for each kind of fault, and the sums.

    Args:
        rows: by kind.
        runs: that came to their end.
    """
    names = ("starts", "by_command", "fired", "losses", "corruptions", "curves")
    width = "{:<20} {:>6} {:>10} {:>6} {:>16} {:>7} {:>12} {:>13}  {}"
    heads = ("starts", "by command", "fired", "most steps lost", "losses", "corruptions", "other curves", "exit statuses of the ranks")
    lines = [width.format("fault", *heads)]
    for kind in (kind for kind in KINDS if kind in rows):
        row = rows[kind]
        seen = ", ".join(f"{count} x ({statuses})" for statuses, count in row.statuses.most_common(5))
        lines.append(
            width.format(kind, row.starts, row.by_command, row.fired, row.most_lost, row.losses, row.corruptions, row.curves, seen)
        )
    starts, by, fired, *rest = (sum(getattr(row, name) for row in rows.values()) for name in names)
    lines.append(width.format("all", starts, by, fired, "", *rest, f"{runs} runs came to their end"))
    return "\n".join(lines)


def without_faults(rows: Mapping[str, Row]) -> list[str]:
    """Lines about faults that do not happen: the place that a fault is put into may have another name by now, and all would be well.

    A fault misses a start that ends before its moment; the soaks so far saw that in 1 of 8 starts, and in 3 of 7 of the worst kind.
    """
    silent = [(kind, row.starts) for kind, row in rows.items() if row.starts >= 8 and not row.fired]
    found = [f"{kind}: in none of {starts} starts did the fault happen" for kind, starts in silent]
    starts, fired = (sum(getattr(row, name) for row in rows.values()) for name in ("starts", "fired"))
    return [*found, f"only {fired} faults happened in {starts} starts"] if starts >= 16 and 2 * fired < starts else found


def add_up(path: Path, rows: dict[str, Row], runs: int, seed: int) -> tuple[dict[str, Row], int]:
    """Adds a soak to those of a file, and returns the sums. The file is made where there is none.

    Raises:
        ValueError: the file has that seed already: its faults would count twice.
    """
    before: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {"seeds": [], "runs": 0, "rows": {}}
    if seed in before["seeds"]:
        raise ValueError(f"{path} has the seed {seed} already; use another")
    sums = defaultdict(Row, {kind: Row(**{**row, "statuses": Counter(row["statuses"])}) for kind, row in before["rows"].items()})
    for kind, row in rows.items():
        sums[kind].add(row)
    runs += before["runs"]
    content = {"seeds": [*before["seeds"], seed], "runs": runs, "rows": {kind: vars(row) for kind, row in sums.items()}}
    with whole_file(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1))
    return sums, runs
