"""The same starts with a store for the checkpoints, faults of that store, and a look at what it holds after each."""

from __future__ import annotations

import shutil
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import torch

from mindspeed_vita.checkpoint.native import atomic
from mindspeed_vita.checkpoint.native import checkpoint as native
from mindspeed_vita.checkpoint.native.stored_steps import RUN_FILES, StoredSteps
from mindspeed_vita.files.writing import write_bytes
from tests.soak_runs import SAVE_EVERY, STEPS, Soak
from tests.soak_starts import Ended
from tests.soak_table import Row
from tests.store_faults import STORES


class StoredSoak(Soak):
    """Runs that send their checkpoints to a folder which stands for a store (file://). It is looked at through the code that fetches."""

    kinds: Sequence[str] = STORES
    known: Sequence[str] = (*Soak.known, atomic.UNSENT)

    @property
    def store(self) -> Path:
        """The folder that is the store."""
        return self.run.with_name(f"store_of_{self.run.name}")

    def fault(self, kind: str) -> None:
        """As Soak.fault. Before a run goes on, its folder is lost in every second case, and the store has to do."""
        if native.latest(self.run) is not None and self.chance.random() < 0.5:
            shutil.rmtree(self.run)
        super().fault(kind)

    def _checkpoint(self) -> dict[str, Any]:
        return {**super()._checkpoint(), "store": f"file://{self.store}", "keep": self._keep()}

    def _keep(self) -> int:
        """In every second run all steps are kept, so that each is looked at."""
        return 0 if self.round % 2 else 2

    def _most_steps(self) -> int:
        """The step that was being sent when the last one was published may still be there."""
        return super()._most_steps() + 1 if self._keep() else STEPS // SAVE_EVERY

    def _steps(self) -> StoredSteps:
        return StoredSteps(f"file://{self.store}")

    def _kept(self) -> int:
        newest = self._steps().newest()
        return max(super()._kept(), atomic.step_of(Path(newest)) if newest else 0)

    def _look(self, kind: str, row: Row, before: int, ended: Ended) -> None:
        """Every step that the store calls whole comes from there, matches its checksums and loads."""
        super()._look(kind, row, before, ended)
        steps = self._steps()
        for name, whole in steps.newest_first():
            try:
                if whole:
                    self._fetched(steps, name)
            except ValueError as error:
                self._problem(row, f"{kind}: the store calls {name} whole: {error}")

    def _fetched(self, steps: StoredSteps, name: str) -> dict[str, torch.Tensor]:
        """The weights of a step of the store. Raises ValueError where it cannot be taken."""
        target = self.folder / "fetched" / name
        shutil.rmtree(target.parent, ignore_errors=True)
        marker, sizes = steps.listed(name)
        if problems := steps.fetch(name, target, sizes, marker):
            raise ValueError("; ".join(problems))
        write_bytes(target / atomic.CHECKSUMS, marker)
        assert native.load_state(target).step == atomic.step_of(target)
        return native.read_full_weights(target)[0]

    def _finish(self, row: Row) -> None:
        """As Soak._finish. The last step is in the store, at the latest after one more start, and so is each other one if all are kept.

        Nothing is left behind there.
        """
        steps, last = self._steps(), atomic.step_name(self._kept())
        expected = {last} if self._keep() else {last, *(folder.name for folder in atomic.complete_steps(self.run))}
        lacking, unsent = self._lacking(expected), atomic.unsent_steps(self.run)
        if unknown := sorted({*lacking} - {*unsent}):
            self._problem(row, f"{', '.join(unknown)}: not in the store, and {atomic.UNSENT} does not say so")
        if lacking or unsent:
            ended = self.forks.start(self._words(), None, self.seconds)
            lacking = self._lacking(expected)
            if not ended.well or lacking:
                self._problem(row, f"the next start did not send {', '.join(lacking)}: {ended.statuses}; {ended.log[-800:]}")
        if steps.is_whole(last):
            stored = self._fetched(steps, last)
            row.curves += not all(torch.equal(stored[name], tensor) for name, tensor in self.straight.weights.items())
        left = [name for name in steps.store.children() if name not in (*RUN_FILES, *steps.names())]
        if left or (self.run / atomic.UNSENT).exists():
            self._problem(row, f"left behind: {left or atomic.UNSENT}")
        super()._finish(row)

    def _lacking(self, names: Collection[str]) -> list[str]:
        """Those of some steps that are not whole in the store, oldest first."""
        steps = self._steps()
        return sorted(name for name in names if not steps.is_whole(name))

    def _next_round(self) -> None:
        if self.round:
            shutil.rmtree(self.store, ignore_errors=True)
        super()._next_round()
