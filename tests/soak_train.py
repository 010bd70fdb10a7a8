"""What scripts/soak_train.sh runs: starts of a tiny run, each with a fault, and a look at what the folder holds after each."""

from __future__ import annotations

import os
import random
import shutil
import signal
import socket
import sys
import tempfile
import time
import traceback
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Optional

import torch
import yaml

from mindspeed_vita.checkpoint.native import atomic
from mindspeed_vita.checkpoint.native import checkpoint as native
from mindspeed_vita.config import recipe_to_dict
from tests.tiny_data import TinyData, make_tiny, read_metrics
from tests.train_faults import HARMLESS, KINDS, Fault

RANKS = 2
STEPS = 24
SAVE_EVERY = 3
LONGEST = 60.0
"""Seconds in which every process of a start must have ended after its fault."""
KNOWN = ("metrics.jsonl", "loss.svg", "quarantine.jsonl", "hang_stacks.txt", "run.lock")
"""Files that a run's folder may hold when the run is over."""


@dataclass
class Row:
    """What the starts with one kind of fault did."""

    starts: int = 0
    fired: int = 0
    most_lost: int = 0
    losses: int = 0
    corruptions: int = 0
    statuses: Counter[str] = field(default_factory=Counter)


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
        self.run = folder / "straight"
        self.seconds = 1.0
        statuses = self._start(None)
        assert statuses == [0] * RANKS, (folder / "log").read_text()
        began = time.monotonic()
        self.run = folder / "timed"
        self._start(None)
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
        extra: list[str] = []
        if kind == "corrupted byte":
            extra = self._corrupt(row, mark)
        statuses = self._start(Fault.draw(kind, self.chance, str(mark)), *extra)
        fired = mark.exists()
        row.fired += fired
        row.statuses[" ".join(map(str, statuses))] += 1
        self._look(kind, row, before, statuses)
        if statuses == [0] * RANKS:
            self._finish(row)
        elif kind in HARMLESS:
            self._problem(row, f"{kind} ended the run: {statuses}")

    def _start(self, fault: Optional[Fault], *words: str) -> list[int]:
        """Exit statuses of the processes of one start; negative: killed by that signal."""
        recipe = self.folder / "recipe.yaml"
        train = {"steps": STEPS, "lr": 2e-3, "min_lr": 2e-4}
        checkpoint = {"save_every": SAVE_EVERY, "background": self.round % 3 == 2}
        content = recipe_to_dict(self.tiny.recipe(self.run, train=train, checkpoint=checkpoint, health={"hang_minutes": 0.08}))
        recipe.write_text(yaml.safe_dump(content))
        log = os.open(self.folder / "log", os.O_CREAT | os.O_WRONLY | os.O_TRUNC | os.O_APPEND)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        sys.stdout.flush()
        processes = [os.fork() or _child(rank, port, log, fault, ["train", str(recipe), *words]) for rank in range(RANKS)]
        os.close(log)
        return self._wait(processes, fault)

    def _wait(self, processes: list[int], fault: Optional[Fault]) -> list[int]:
        began, acted, continued = time.monotonic(), False, False
        statuses: dict[int, int] = {}
        first_end: Optional[float] = None
        while len(statuses) < RANKS:
            now = time.monotonic()
            for process in processes:
                if process not in statuses and (found := os.waitpid(process, os.WNOHANG))[0]:
                    statuses[process] = os.waitstatus_to_exitcode(found[1])
                    first_end = first_end or now
            if fault is not None and processes[fault.rank] not in statuses:
                target, outside = processes[fault.rank], fault.kind in ("kill: any moment", "stop and continue", "stop for ever")
                if outside and not acted and now - began > fault.moment * self.seconds:
                    acted = True
                    fault.fired()
                    os.kill(target, signal.SIGKILL if fault.kind.startswith("kill") else signal.SIGSTOP)
                elif acted and fault.kind == "stop and continue" and not continued and now - began > fault.moment * self.seconds + 0.5:
                    continued = True
                    os.kill(target, signal.SIGCONT)
                elif acted and fault.kind == "stop for ever" and len(statuses) == RANKS - 1:
                    os.kill(target, signal.SIGKILL)  # as its launcher would
            late = first_end is not None and now - first_end > LONGEST or now - began > 4 * LONGEST
            if late:
                self.problems.append(f"a process did not end: {fault}; {(self.folder / 'log').read_text()[-800:]}")
            # before there is a process group only a launcher can know that a process is gone
            if late or (first_end is not None and now - first_end > 1 and "device: " not in (self.folder / "log").read_text()):
                for process in {*processes} - {*statuses}:
                    os.kill(process, signal.SIGKILL)
                    statuses[process] = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
            time.sleep(0.01)
        return [statuses[process] for process in processes]

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
        statuses, text = self._start(None), (self.folder / "log").read_text()
        if statuses != [2] * RANKS:
            self._problem(row, f"a changed byte in {path.name} was not refused: {statuses}; {text[-500:]}")
        if f"--resume-from {steps[-2].name}" not in text:
            self._problem(row, f"a changed byte in {path.name}: the step before was not offered: {text[-500:]}")
        return ["--resume-from", steps[-2].name]

    def _look(self, kind: str, row: Row, before: Optional[Path], statuses: list[int]) -> None:
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
            self.problems.append(f"{kind}: {trained} steps were trained, {kept} are kept; {statuses}")
        text = (self.folder / "log").read_text()
        if "Traceback" in text:
            self.problems.append(f"{kind}: a traceback: {text[-1500:]}")

    def _finish(self, row: Row) -> None:
        """The run is over: its curve and weights are those of the straight one, and nothing is left behind."""
        if read_metrics(self.run) != self.curve:
            self._problem(row, "another curve")
        ours = native.read_full_weights(self.run)[0]
        if not all(torch.equal(ours[name], tensor) for name, tensor in self.weights.items()):
            self._problem(row, "other weights")
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

    def table(self) -> str:
        """One line for each kind of fault, and the sums."""
        head = f"{'fault':<20} {'starts':>6} {'fired':>6} {'most steps lost':>16} {'losses':>7} {'corruptions':>12}"
        lines = [f"{head}  exit statuses of the ranks"]
        for kind in KINDS:
            if kind in self.rows:
                row = self.rows[kind]
                seen = ", ".join(f"{count} x ({statuses})" for statuses, count in row.statuses.most_common(4))
                lines.append(f"{kind:<20} {row.starts:>6} {row.fired:>6} {row.most_lost:>16} {row.losses:>7} {row.corruptions:>12}  {seen}")
        rows = self.rows.values()
        sums = [sum(getattr(row, name) for row in rows) for name in ("starts", "fired", "losses", "corruptions")]
        lines.append(f"{'all':<20} {sums[0]:>6} {sums[1]:>6} {'':>16} {sums[2]:>7} {sums[3]:>12}  {self.round - 1} runs came to their end")
        return "\n".join(lines)


def _child(rank: int, port: int, log: int, fault: Optional[Fault], words: list[str]) -> Any:
    """One process of a run; never returns."""
    try:
        os.dup2(log, 1)
        os.dup2(log, 2)
        where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(RANKS), "RANK": str(rank), "LOCAL_RANK": str(rank)}
        os.environ.update(where)
        if fault is not None:
            fault.put_in()
        from mindspeed_vita.cli.main import main as vita

        os._exit(vita(words))
    except BaseException:  # noqa: BLE001 - a forked copy of this program must not go on
        traceback.print_exc()
    finally:
        os._exit(99)


def _import_the_rest(tiny: TinyData) -> None:
    """What a run imports late, once here and not in every process."""
    import mindspeed_vita.cli.after_training
    import mindspeed_vita.cli.train
    import mindspeed_vita.data.dataset
    import mindspeed_vita.data.loader
    import mindspeed_vita.data.tokenizer
    import mindspeed_vita.engine.loss_curve
    import mindspeed_vita.engine.resuming
    from mindspeed_vita.data.templates import get_template

    mindspeed_vita.data.tokenizer.load_tokenizer(str(tiny.folder / "tokenizer"), get_template("qwen2"))


def main(faults: int = 1000, seconds: float = float("inf"), seed: int = 0) -> int:
    """Prints the table; the exit status says whether all is well."""
    from mindspeed_vita.checks.parity.pool import import_everything
    from mindspeed_vita.engine import watchdog

    import_everything()
    watchdog._ANSWERS = 3.0
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="vita_soak_") as name:
        tiny = make_tiny(Path(name))
        _import_the_rest(tiny)
        soak = Soak(Path(name), tiny, seed)
        order: list[str] = []
        for _ in range(faults):
            if time.monotonic() - began > seconds:
                break
            if not order:
                order = soak.chance.sample(KINDS, len(KINDS))
            soak.fault(order.pop())
            if sys.stderr.isatty() and sum(row.starts for row in soak.rows.values()) % 20 == 0:
                print(f"{sum(row.starts for row in soak.rows.values())} faults, {len(soak.problems)} problems", file=sys.stderr)
        print(soak.table())
    for problem in soak.problems[:10]:
        print(problem)
    print("FAIL: the soak of training" if soak.problems else f"PASS: the soak of training, {time.monotonic() - began:.0f} s")
    return 1 if soak.problems else 0


if __name__ == "__main__":
    sys.exit(main(*(kind(text) for kind, text in zip((int, float, int), sys.argv[1:]))))
