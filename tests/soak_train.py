"""What scripts/soak_train.sh runs: starts of a tiny run, each with a fault, and a look at what the folder holds after each."""

from __future__ import annotations

import json
import random
import shutil
import sys
import tempfile
import time
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Optional

import torch
import yaml

from mindspeed_vita.checkpoint.native import atomic
from mindspeed_vita.checkpoint.native import checkpoint as native
from mindspeed_vita.config import recipe_to_dict
from mindspeed_vita.files.publish import whole_file
from tests.soak_starts import RANKS, Ended, Forks, by_command
from tests.tiny_data import TinyData, make_tiny, read_metrics
from tests.train_faults import HARMLESS, KINDS, Fault

STEPS = 24
SAVE_EVERY = 3
BY_COMMAND = 10
"""Every tenth start is by the real command."""
KNOWN = ("metrics.jsonl", "loss.svg", "quarantine.jsonl", "hang_stacks.txt", "run.lock")
"""Files that a run's folder may hold when the run is over."""


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


class Soak:
    """The starts, one after the other.

    Args:
        folder: for everything.
        tiny: the data.
        seed: of the faults.
    """

    def __init__(self, folder: Path, tiny: TinyData, seed: int) -> None:
        self.folder, self.tiny, self.chance = folder, tiny, random.Random(seed)
        self.rows: dict[str, Row] = defaultdict(Row)
        self.problems: list[str] = []
        self.round = 0
        self.starts = 0
        self.forks = Forks(folder)
        self.run = folder / "straight"
        ended = self.forks.learn(self._words())
        assert ended.well, ended.log
        self.run = folder / "timed"
        began = time.monotonic()
        self.forks.start(self._words(), None, 1.0)
        self.seconds = time.monotonic() - began
        self.run = folder / "straight"
        self.curve, self.weights = read_metrics(self.run), native.read_full_weights(self.run)[0]
        self._next_round()

    def fault(self, kind: str) -> None:
        """A start with a fault of a kind, and a look at the folder."""
        for _ in range(10 if kind == "corrupted byte" else 0):  # it takes two steps, one of them to go on from
            if len(atomic.complete_steps(self.run)) > 1:
                break
            self.fault("kill: any moment")
        mark = self.folder / "fired"
        mark.unlink(missing_ok=True)
        row, before = self.rows[kind], native.latest(self.run)
        row.starts += 1
        self.starts += 1
        extra: list[str] = []
        if kind == "corrupted byte":
            extra = self._corrupt(row, mark)
        fault, words = Fault.draw(kind, self.chance, str(mark)), self._words(*extra, hangs=kind == "stop for ever")
        if self.starts % BY_COMMAND == 4:
            row.by_command += 1
            ended = by_command(self.folder, words, fault, 2 * self.seconds)  # half of it for imports
        else:
            ended = self.forks.start(words, fault, self.seconds)
        self.problems += ended.problems
        fired = mark.exists()
        row.fired += fired
        row.statuses[" ".join(map(str, ended.statuses))] += 1
        self._look(kind, row, before, ended)
        if ended.well:
            self._finish(row)
        elif kind in HARMLESS or (kind == "error of a rank" and {*ended.statuses} != {2}):
            self._problem(row, f"{kind} ended the run: {ended.statuses}; {ended.log[-800:]}")

    def _words(self, *further: str, hangs: bool = False) -> list[str]:
        """The command, behind `vita`. `hangs`: the run is going to hang, and need not wait long before it says so; on a busy machine
        the others may stand still for seconds."""
        recipe = self.folder / "recipe.yaml"
        train = {"steps": STEPS, "lr": 2e-3, "min_lr": 2e-4}
        checkpoint = {"save_every": SAVE_EVERY, "background": self.round % 3 == 2}
        health = {"hang_minutes": 0.04 if hangs else 0.5}
        content = recipe_to_dict(self.tiny.recipe(self.run, train=train, checkpoint=checkpoint, health=health))
        recipe.write_text(yaml.safe_dump({**content, "plugins": ["tests.fault_plugin"]}))
        return ["train", str(recipe), *further]

    def _corrupt(self, row: Row, mark: Path) -> list[str]:
        """Changes a byte of the newest step, sees that it is refused, and returns how to go on from the one before."""
        steps = atomic.complete_steps(self.run)
        if len(steps) < 2:
            return []
        path = self.chance.choice(sorted(path for path in steps[-1].rglob("*") if path.is_file()))
        content = bytearray(path.read_bytes())
        content[self.chance.randrange(len(content))] ^= 1 << self.chance.randrange(8)
        path.write_bytes(content)
        mark.touch()
        ended = self.forks.start(self._words(), None, self.seconds)
        if ended.statuses != [2] * RANKS:
            self._problem(row, f"a changed byte in {path.name} was not refused: {ended.statuses}; {ended.log[-500:]}")
        if f"--resume-from {steps[-2].name}" not in ended.log:
            self._problem(row, f"a changed byte in {path.name}: the step before was not offered: {ended.log[-500:]}")
        return ["--resume-from", steps[-2].name]

    def _look(self, kind: str, row: Row, before: Optional[Path], ended: Ended) -> None:
        """Every step that is visible is whole, and no more is lost than was trained since the last save."""
        atomic_steps = atomic.complete_steps(self.run)
        for step in atomic_steps:
            if wrong := atomic.verify(step, atomic.recorded(step)):
                self._problem(row, f"{kind}: {step.name}: {wrong}")
        trained = len(read_metrics(self.run)) if (self.run / "metrics.jsonl").is_file() else 0
        kept = atomic.step_of(atomic_steps[-1]) if atomic_steps else 0
        hidden = self.run / f".replaced-{atomic.step_name(kept)}"
        lost = trained - kept if not hidden.exists() else 0
        row.most_lost = max(row.most_lost, lost)
        limit = SAVE_EVERY * (2 if self.round % 3 == 2 else 1)  # one save more is on its way where saves go on in the background
        went_back = kind != "corrupted byte" and before is not None and kept < atomic.step_of(before)
        if lost > limit or went_back:
            row.losses += 1
            self.problems.append(f"{kind}: {trained} steps were trained, {kept} are kept; {ended.statuses}; {ended.log[-500:]}")
        if _own_traceback(ended.log):
            self.problems.append(f"{kind}: a traceback: {ended.log[-1500:]}")
        told = ended.log.count("vita: error: ")
        if told > 1 or kind == "error of a rank" and ended.statuses == [2] * RANKS and not told:
            self.problems.append(f"{kind}: {told} messages, and not one: {ended.log[-1500:]}")

    def _finish(self, row: Row) -> None:
        """The run is over: its curve and weights are those of the straight one, and nothing is left behind."""
        ours = native.read_full_weights(self.run)[0]
        same_weights = all(torch.equal(ours[name], tensor) for name, tensor in self.weights.items())
        if read_metrics(self.run) != self.curve or not same_weights:
            row.curves += 1
            self.problems.append(f"another {'curve' if same_weights else 'curve, or other weights'}")
        left = [path.name for path in self.run.iterdir() if path.name not in KNOWN and not path.name.startswith(("step_", "aside-step_"))]
        if left or len(list(self.run.glob("step_*"))) > 2:
            self._problem(row, f"left behind: {sorted(path.name for path in self.run.iterdir())}")
        self._next_round()

    def _next_round(self) -> None:
        if self.round:
            shutil.rmtree(self.run)
        self.round += 1
        self.run = self.folder / f"run{self.round}"

    def _problem(self, row: Row, text: str) -> None:
        row.corruptions += 1
        self.problems.append(text)


def _own_traceback(log: str) -> bool:
    """Whether a process of the run printed a traceback. torchrun prints its own, about the process that failed."""
    return "Traceback" in log.partition("torch/distributed/elastic")[0].partition("ChildFailedError")[0]


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


def main(faults: int = 1000, seconds: float = float("inf"), seed: int = 0, sums: str = "") -> int:
    """Prints the table; the exit status says whether all is well."""
    from mindspeed_vita.checks.parity.pool import import_everything
    from mindspeed_vita.engine import leaving, watchdog

    import_everything()
    watchdog._ANSWERS, leaving._READ = 3.0, 0.1  # forked ranks; those of the real command wait as long as they always do
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="vita_soak_") as name:
        soak = Soak(Path(name), make_tiny(Path(name)), seed)
        order: list[str] = []
        for _ in range(faults):
            if time.monotonic() - began > seconds:
                break
            if not order:
                order = soak.chance.sample(KINDS, len(KINDS))
            known = len(soak.problems)
            soak.fault(order.pop())
            for problem in soak.problems[known:]:
                print(f"problem: {problem}", file=sys.stderr, flush=True)
            if sys.stderr.isatty() and soak.starts % 20 == 0:
                print(f"{soak.starts} faults, {len(soak.problems)} problems", file=sys.stderr)
    rows, runs = soak.rows, soak.round - 1
    print(table(rows, runs))
    if sums:
        print(f"\nall soaks of {sums}:\n{table(*add_up(Path(sums), rows, runs, seed))}\n")
    print("FAIL: the soak of training" if soak.problems else f"PASS: the soak of training, {time.monotonic() - began:.0f} s")
    return 1 if soak.problems else 0


if __name__ == "__main__":
    sys.exit(main(*(kind(text) for kind, text in zip((int, float, int, str), sys.argv[1:]))))
