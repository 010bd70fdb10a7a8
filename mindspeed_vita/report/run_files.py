"""The files of one run: curves, samples that failed, gates, the record of the pipeline, where its weights come from."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Optional, TypeVar

from mindspeed_vita.checkpoint import gates, lineage
from mindspeed_vita.checkpoint.gates import Gate
from mindspeed_vita.engine.bad_numbers import BAD_NUMBERS
from mindspeed_vita.engine.held_out_watch import PACKS, exhausted
from mindspeed_vita.engine.metrics import HELD_OUT_LOSS, STARTED
from mindspeed_vita.pipeline.progress import read_record
from mindspeed_vita.report.checkpoints import lineage_of, recipe_of, saved_steps
from mindspeed_vita.report.json_lines import Entry, JsonLines, finite, is_number, is_step
from mindspeed_vita.wording import printable

_Found = TypeVar("_Found")
_METRICS = "metrics.jsonl"


class RunFiles:
    """What a run wrote so far. `read` looks again.

    Args:
        folder: of the run.

    Raises:
        ValueError: it is no folder, or a folder of runs.
    """

    def __init__(self, folder: Path) -> None:
        if not folder.is_dir():
            raise ValueError(f"{folder}: no such folder; expected the folder of a run (checkpoint.directory of its recipe)")
        below = [] if (folder / _METRICS).is_file() else sorted(path.parent.name for path in folder.glob(f"*/{_METRICS}"))
        if below:
            shown = ", ".join(below[:8]) + (f" and {len(below) - 8} more" if len(below) > 8 else "")
            raise ValueError(f"{folder} is no run itself; it holds the runs {shown}; name one, such as {folder / below[0]}")
        self.folder = folder
        self.metrics = JsonLines(folder / _METRICS, _metrics_fault)
        self.steps: list[Entry] = []
        """Lines of training steps, ascending; of a step that was written twice, the later line."""
        self.evaluations: list[Entry] = []
        """Lines of the held-out loss, ascending."""
        self.saved: list[int] = []
        """Steps with a whole checkpoint, ascending."""
        self.recipe: Mapping[str, Any] = {}
        """That of the newest start, else that of the newest checkpoint; empty: neither is written yet."""
        self.lineage: Optional[lineage.Lineage] = None
        """Of the newest checkpoint; None: not written yet."""
        self.gates: list[tuple[str, Gate]] = []
        """All that were measured, each with the name of its step; oldest first."""
        self.pipeline: Mapping[str, Any] = {}
        """The pipeline's record; empty: no pipeline trains this run."""
        self._started: Mapping[str, Any] = {}
        self._saved_recipe: Mapping[str, Any] = {}
        self._quarantine: Optional[JsonLines] = None
        self._bad = JsonLines(folder / BAD_NUMBERS, _bad_fault)
        self.notes: list[str] = []
        """A sentence for each file that is damaged."""

    @property
    def name(self) -> str:
        """Of the recipe; of the folder where it is not known yet."""
        return printable(self.recipe.get("name") or self.folder.resolve().name)

    @property
    def last_step(self) -> Optional[int]:
        """That the run is to reach; None: not known yet, as where an earlier version went on beyond what its newest checkpoint says.

        Fewer than were made: the newest start asked for fewer, so there was nothing left to train.
        """
        found = self._section("train").get("steps")
        if not is_step(found):
            return None
        beyond = bool(self.steps) and self.steps[-1]["step"] > found
        return None if beyond and not self._started else found

    @property
    def over(self) -> bool:
        """Whether the run has saved its last step, eval.patience ended it, or its pipeline says so; not while later lines follow."""
        if not self.saved or (self.steps and self.steps[-1]["step"] > self.saved[-1]):
            return False
        reached = self.last_step is not None and self.saved[-1] >= self.last_step
        steps, told = self._section("train").get("steps"), self.pipeline.get("steps")
        of_these = told is None or steps is None or told == steps  # with more steps it goes on
        return reached or self._ended_early or (self.pipeline.get("ended") is True and of_these)

    @property
    def steps_per_line(self) -> int:
        """Steps between two lines: logging.every, or what the last two lines say."""
        every = self._section("logging").get("every")
        if isinstance(every, int):
            return every
        return self.steps[-1]["step"] - self.steps[-2]["step"] if len(self.steps) > 1 else 1

    @property
    def silence(self) -> float:
        """Seconds since the newest line, or since the newest start if that came later.

        Raises:
            OSError: there is no line.
        """
        changed = self.metrics.path.stat().st_mtime
        with suppress(FileNotFoundError):
            changed = max(changed, (self.folder / STARTED).stat().st_mtime)
        return time.time() - changed

    @property
    def _ended_early(self) -> bool:
        patience, newest = self._section("eval").get("patience"), self.evaluations[-1] if self.evaluations else {}
        if not isinstance(patience, int) or newest.get("step") != self.saved[-1]:
            return False
        of_these_packs = [line for line in self.evaluations if line.get(PACKS) == newest.get(PACKS)]
        return exhausted({line["step"]: line[HELD_OUT_LOSS] for line in of_these_packs}, patience)

    @property
    def failed(self) -> Sequence[Entry]:
        """Lines of quarantine.jsonl about this run, in the file's order."""
        lines = self._quarantine.entries if self._quarantine else []
        return lines if self._own_quarantine else [line for line in lines if line.get("run") == os.path.abspath(self.folder)]

    @property
    def bad(self) -> Sequence[Entry]:
        """Lines of bad_numbers.jsonl, in the file's order: steps whose loss or gradient norm went bad, and which have no other line."""
        return self._bad.entries

    def read(self) -> None:
        """Reads what is new.

        Raises:
            OSError: a file of lines cannot be read.
        """
        self.notes = []
        self.metrics.read()
        steps = {entry["step"]: entry for entry in self.metrics.entries if "loss" in entry}
        self.steps = [steps[step] for step in sorted(steps)]
        evaluations = {entry["step"]: entry for entry in self.metrics.entries if HELD_OUT_LOSS in entry}
        self.evaluations = [evaluations[step] for step in sorted(evaluations)]
        self._read_checkpoints()
        path = Path(str(self._section("data").get("quarantine") or self.folder / "quarantine.jsonl"))
        if self._quarantine is None or self._quarantine.path != path:
            self._quarantine = JsonLines(path, _quarantine_fault)
        self._quarantine.read()
        self._bad.read()
        self.gates = self._noted(lambda: _all_gates(self.folder), [])
        self.pipeline = self._noted(lambda: read_record(self.folder), {})
        self.notes = [note for note in (self.metrics.note, self._bad.note, self._quarantine.note, *self.notes) if note]

    def curve(self, key: str) -> list[tuple[float, float]]:
        """(step, value) of the lines whose value is finite."""
        lines = self.evaluations if key.startswith("eval/") else self.steps
        return [(float(line["step"]), value) for line in lines if (value := finite(line, key)) is not None]

    def not_finite(self, key: str) -> list[int]:
        """Steps whose value is NaN or infinite."""
        lines = self.evaluations if key.startswith("eval/") else self.steps
        return [line["step"] for line in lines if is_number(line.get(key)) and finite(line, key) is None]

    def keys(self) -> list[str]:
        """Of all lines that have a number under them, sorted."""
        found = {key for line in (*self.steps, *self.evaluations) for key, value in line.items() if is_number(value)}
        return sorted(found - {"step"})

    @property
    def _own_quarantine(self) -> bool:
        return self._quarantine is None or self._quarantine.path.parent == self.folder

    def _section(self, name: str) -> Mapping[str, Any]:
        found = self.recipe.get(name)
        return found if isinstance(found, Mapping) else {}

    def _read_checkpoints(self) -> None:
        steps: dict[int, Path] = self._noted(lambda: saved_steps(self.folder), {})
        saved = list(steps)
        new = saved != self.saved
        self.saved = saved
        if new or not self._saved_recipe:  # a damaged one is told at each look
            self._saved_recipe = self._noted(lambda: recipe_of(steps[saved[-1]]), {}) if saved else {}
        self._started = self._noted(lambda: _read_start(self.folder / STARTED), {})
        self.recipe = self._started or self._saved_recipe
        if new or self.lineage is None:  # --engine hf writes the record after its last checkpoint
            self.lineage = self._noted(lambda: lineage_of(steps[saved[-1]]), None) if saved else None

    def _noted(self, look: Callable[[], _Found], otherwise: _Found) -> _Found:
        """What a look gives; where the file is damaged, a note says so, and what else the run wrote is shown."""
        try:
            return look()
        except FileNotFoundError:  # a run that goes on removes old steps
            return otherwise
        except ValueError as error:
            self.notes.append(str(error))
            return otherwise


def _read_start(path: Path) -> Mapping[str, Any]:
    """The recipe of the newest start.

    Raises:
        FileNotFoundError: an earlier version wrote the run.
        ValueError: the file is damaged.
    """
    try:
        recipe = json.loads(path.read_text(encoding="utf-8"))["recipe"]
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise ValueError(f"{path} cannot be read ({error!r}); the next start of the run writes it anew") from error
    if not isinstance(recipe, Mapping):
        raise ValueError(f"{path}: its recipe is no object; the next start of the run writes it anew")
    return recipe


def _all_gates(run: Path) -> list[tuple[str, Gate]]:
    names = {found[1] for path in (run / gates.FOLDER).glob("*.json") if (found := re.search(r"\.(step_\d+)\.json$", path.name))}
    return [(name, gate) for name in sorted(names) for gate in gates.gates_of(run / name).values()]


def _metrics_fault(entry: Entry) -> str:
    if not is_step(entry.get("step")):
        return 'it has no whole number as "step"'
    for key in ("loss", HELD_OUT_LOSS):
        if key in entry and not is_number(entry[key]):
            return f'its "{key}" is no number'
    return ""


def _quarantine_fault(entry: Entry) -> str:
    return "" if isinstance(entry.get("reason"), str) else 'it has no "reason"'


def _bad_fault(entry: Entry) -> str:
    if not is_step(entry.get("step")):
        return 'it has no whole number as "step"'
    return next((f'it has no "{key}"' for key in ("action", "why") if not isinstance(entry.get(key), str)), "")
