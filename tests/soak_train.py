"""What scripts/soak_train.sh runs: starts of a tiny run, each with a fault, and a look at what the folder holds after each."""

from __future__ import annotations

import random
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

from tests.soak_runs import Soak, Straight
from tests.soak_stored import StoredSoak
from tests.soak_table import Row, add_up, table, without_faults
from tests.tiny_data import make_tiny

SOAKS: dict[str, tuple[type[Soak], ...]] = {"all": (Soak, StoredSoak), "local": (Soak,), "store": (StoredSoak,)}
"""Which kinds of faults: those of a run without a store, those of a store, or both in turn."""


def main(faults: int = 1000, seconds: float = float("inf"), seed: int = 0, sums: str = "", which: str = "all") -> int:
    """Prints the table; the exit status says whether all is well.

    Args:
        faults: how many starts with a fault.
        seconds: after which no further one begins.
        seed: of the faults. The kinds with a store draw theirs apart, so the others get the same ones with and without them.
        sums: a JSON file that adds up the tables of several calls; empty: none.
        which: a key of SOAKS.
    """
    from mindspeed_vita.checks.parity.pool import import_everything
    from mindspeed_vita.engine import leaving, uploading, watchdog

    if which not in SOAKS:
        raise SystemExit(f"KINDS is {which!r}; expected one of {', '.join(SOAKS)}")
    import_everything()
    # forked ranks; those of the real command wait as long as they always do
    watchdog._ANSWERS, leaving._READ, uploading.FIRST_PAUSE = 3.0, 0.1, 0.05
    began = time.monotonic()
    rows: dict[str, Row] = defaultdict(Row)
    problems: list[str] = []
    with tempfile.TemporaryDirectory(prefix="vita_soak_") as name:
        folder = Path(name)
        tiny = make_tiny(folder)
        straight = Straight.trained(folder, tiny)
        chances: dict[type[Soak], Any] = {Soak: seed, StoredSoak: f"{seed} with a store"}
        soaks = [make(folder, tiny, straight, random.Random(chances[make]), rows, problems) for make in SOAKS[which]]
        order: list[tuple[Soak, str]] = []
        for number in range(1, faults + 1):
            if time.monotonic() - began > seconds:
                break
            if not order:
                order = [(soak, kind) for soak in reversed(soaks) for kind in soak.chance.sample(soak.kinds, len(soak.kinds))]
            known = len(problems)
            soak, kind = order.pop()
            soak.fault(kind)
            for problem in problems[known:]:
                print(f"problem: {problem}", file=sys.stderr, flush=True)
            if sys.stderr.isatty() and number % 20 == 0:
                print(f"{number} faults, {len(problems)} problems", file=sys.stderr)
        runs = sum(soak.round - 1 for soak in soaks)
    for line in without_faults(rows):
        problems.append(line)
        print(f"problem: {line}", file=sys.stderr, flush=True)
    print(table(rows, runs))
    if sums:
        print(f"\nall soaks of {sums}:\n{table(*add_up(Path(sums), rows, runs, seed))}\n")
    print("FAIL: the soak of training" if problems else f"PASS: the soak of training, {time.monotonic() - began:.0f} s")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main(*(kind(text) for kind, text in zip((int, float, int, str, str), sys.argv[1:]))))
