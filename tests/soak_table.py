"""The table of a soak of training: what the starts with each kind of fault did, and the sums over several soaks.

    python -m tests.soak_table SUMS.json...    prints the sums of these files as docs/results/soak.md has them
"""

from __future__ import annotations

import json
import sys
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
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


def page(rows: Mapping[str, Row], runs: int) -> str:
    """The table in Markdown. Arguments as table."""
    heads = ("fault", "starts", "by command", "fired", "most steps lost", "losses", "corruptions", "other curves", "exit statuses")
    lines = [heads, ("---",) * len(heads)]
    for kind in (kind for kind in KINDS if kind in rows):
        row = rows[kind]
        seen = ", ".join(f"{count} x {statuses}" for statuses, count in row.statuses.most_common())
        counts = (row.starts, row.by_command, row.fired, row.most_lost, row.losses, row.corruptions, row.curves)
        lines.append((kind, *map(str, counts), seen))
    sums = Row()
    for row in rows.values():
        sums.add(row)
    bold = [f"**{count}**" for count in (sums.starts, sums.by_command, sums.fired, sums.losses, sums.corruptions, sums.curves)]
    lines.append(("**all**", *bold[:3], "", *bold[3:], f"{runs} runs came to their end"))
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def add_up(path: Path, rows: dict[str, Row], runs: int, seed: int) -> tuple[dict[str, Row], int]:
    """Adds a soak to those of a file, and returns the sums. The file is made where there is none.

    Raises:
        ValueError: the file has that seed already: its faults would count twice.
    """
    sums, runs_before, seeds = _read(path) if path.is_file() else (defaultdict(Row), 0, [])
    if seed in seeds:
        raise ValueError(f"{path} has the seed {seed} already; use another")
    for kind, row in rows.items():
        sums[kind].add(row)
    runs += runs_before
    content = {"seeds": [*seeds, seed], "runs": runs, "rows": {kind: vars(row) for kind, row in sums.items()}}
    with whole_file(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1))
    return sums, runs


def _read(path: Path) -> tuple[defaultdict[str, Row], int, list[int]]:
    """The rows, the runs that came to their end, and the seeds that a file adds up."""
    content: dict[str, Any] = json.loads(path.read_text())
    rows = {kind: Row(**{**row, "statuses": Counter(row["statuses"])}) for kind, row in content["rows"].items()}
    return defaultdict(Row, rows), content["runs"], content["seeds"]


def main(paths: Sequence[str]) -> None:
    """Prints the sums of several files."""
    rows, runs = defaultdict[str, Row](Row), 0
    for found, ended, _ in map(_read, map(Path, paths)):
        runs += ended
        for kind, row in found.items():
            rows[kind].add(row)
    print(page(rows, runs))


if __name__ == "__main__":
    main(sys.argv[1:])
