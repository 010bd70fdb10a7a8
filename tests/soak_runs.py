"""The starts of a tiny run, each with a fault, and a look at what the run's folder holds after each."""

from __future__ import annotations

import random
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
import yaml

from mindspeed_vita.checkpoint.native import atomic
from mindspeed_vita.checkpoint.native import checkpoint as native
from mindspeed_vita.config import recipe_to_dict
from tests.soak_starts import RANKS, Ended, Forks, by_command
from tests.soak_table import Row
from tests.tiny_data import TinyData, read_metrics
from tests.train_faults import HARMLESS, WITHOUT_STORE, Fault

STEPS = 24
SAVE_EVERY = 3
BY_COMMAND = 10
"""Every tenth start is by the real command."""


@dataclass(frozen=True)
class Straight:
    """The run without faults."""

    forks: Forks
    seconds: float
    """That a start without a fault takes."""
    curve: Sequence[float]
    weights: dict[str, torch.Tensor]

    @classmethod
    def trained(cls, folder: Path, tiny: TinyData) -> Straight:
        """Trains it twice: what the first start imported, the second one need not."""
        forks, words = Forks(folder), partial(_words, folder, tiny)
        ended = forks.learn(words(folder / "straight"))
        assert ended.well, ended.log
        began = time.monotonic()
        forks.start(words(folder / "timed"), None, 1.0)
        seconds = time.monotonic() - began
        return cls(forks, seconds, read_metrics(folder / "straight"), native.read_full_weights(folder / "straight")[0])


class Soak:
    """The starts, one after the other.

    Args:
        folder: for everything.
        tiny: the data.
        straight: what the runs are compared with.
        chance: draws the faults.
        rows: what the starts did, by kind of fault.
        problems: lines about what does not hold.
    """

    kinds: Sequence[str] = WITHOUT_STORE
    known: Sequence[str] = ("metrics.jsonl", "started.json", "loss.svg", "quarantine.jsonl", "hang_stacks.txt", "run.lock")
    """Files that a run's folder may hold when the run is over."""

    def __init__(
        self, folder: Path, tiny: TinyData, straight: Straight, chance: random.Random, rows: dict[str, Row], problems: list[str]
    ) -> None:
        self.folder, self.tiny, self.straight, self.chance = folder, tiny, straight, chance
        self.forks, self.seconds = straight.forks, straight.seconds
        self.rows, self.problems = rows, problems
        self.round = 0
        self.starts = 0
        self._next_round()

    def fault(self, kind: str) -> None:
        """A start with a fault of a kind, and a look at the folder."""
        for _ in range(10 if kind == "corrupted byte" else 0):  # it takes two steps, one of them to go on from
            if len(atomic.complete_steps(self.run)) > 1:
                break
            self.fault("kill: any moment")
        mark = self.folder / "fired"
        mark.unlink(missing_ok=True)
        row, before = self.rows[kind], self._kept()
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
        """The command, behind `vita`. `hangs`: the run is going to hang, and need not wait long before it says so."""
        return [*_words(self.folder, self.tiny, self.run, self._checkpoint(), 0.04 if hangs else 0.5), *further]

    def _checkpoint(self) -> dict[str, Any]:
        """Of the recipe."""
        return {"background": self.round % 3 == 2}

    def _most_steps(self) -> int:
        """That a run's folder may hold when the run is over."""
        return 2

    def _kept(self) -> int:
        """The number of the step that a start now has to continue from, or of a newer one; 0: none."""
        newest = native.latest(self.run)
        return atomic.step_of(newest) if newest else 0

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

    def _look(self, kind: str, row: Row, before: int, ended: Ended) -> None:
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
        went_back = kind != "corrupted byte" and kept < before
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
        same_weights = all(torch.equal(ours[name], tensor) for name, tensor in self.straight.weights.items())
        if read_metrics(self.run) != self.straight.curve or not same_weights:
            row.curves += 1
            self.problems.append(f"another {'curve' if same_weights else 'curve, or other weights'}")
        names = [path.name for path in self.run.iterdir() if not path.name.startswith(("step_", "aside-step_"))]
        left = [name for name in names if name not in self.known]
        if left or len(list(self.run.glob("step_*"))) > self._most_steps():
            self._problem(row, f"left behind: {sorted(path.name for path in self.run.iterdir())}")
        self._next_round()

    def _next_round(self) -> None:
        if self.round:
            shutil.rmtree(self.run)
        self.round += 1
        self.run = self.folder / f"{type(self).__name__}{self.round}"

    def _problem(self, row: Row, text: str) -> None:
        row.corruptions += 1
        self.problems.append(text)


def _words(
    folder: Path, tiny: TinyData, run: Path, checkpoint: Mapping[str, Any] = MappingProxyType({}), hang_minutes: float = 0.5
) -> list[str]:
    """The command that trains in a run's folder, behind `vita`. On a busy machine a run that is not to hang may stand still for seconds."""
    recipe = folder / "recipe.yaml"
    train = {"steps": STEPS, "lr": 2e-3, "min_lr": 2e-4}
    sections = {"train": train, "checkpoint": {"save_every": SAVE_EVERY, **checkpoint}, "health": {"hang_minutes": hang_minutes}}
    content = recipe_to_dict(tiny.recipe(run, **sections))
    recipe.write_text(yaml.safe_dump({**content, "plugins": ["tests.fault_plugin"]}))
    return ["train", str(recipe)]


def _own_traceback(log: str) -> bool:
    """Whether a process of the run printed a traceback. torchrun prints its own, about the process that failed."""
    return "Traceback" in log.partition("torch/distributed/elastic")[0].partition("ChildFailedError")[0]
