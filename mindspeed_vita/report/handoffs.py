"""Which run starts from the weights of which other one, by the records of their lineage."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from mindspeed_vita.checkpoint.lineage import Lineage
from mindspeed_vita.report.run_files import RunFiles

_MEAN_OF = 10
"""Losses on each side that a mean is taken of."""


@dataclass(frozen=True)
class HandOff:
    """One run that started from another's step."""

    before: RunFiles
    after: RunFiles
    step: int
    """Of the run before."""

    @property
    def losses(self) -> tuple[float | None, float | None]:
        """Mean loss of up to ten lines that lead to the step, and of the first ten lines of the run after; None: there is none."""
        last = [loss for step, loss in self.before.curve("loss") if step <= self.step][-_MEAN_OF:]
        first = [loss for _, loss in self.after.curve("loss")][:_MEAN_OF]
        return mean(last), mean(first)


def mean(values: Sequence[float]) -> float | None:
    """None where there are no values."""
    return sum(values) / len(values) if values else None


def hand_offs(runs: Sequence[RunFiles]) -> list[HandOff]:
    """The hand-offs among some runs, also through exports and conversions, by order of the runs."""
    found = (_start(run, runs) for run in runs)
    return [one for one in found if one is not None]


def offsets(runs: Sequence[RunFiles], found: Sequence[HandOff]) -> dict[str, int]:
    """Steps that came before each run's first one, by its folder, counted over the hand-offs."""
    starts = {str(one.after.folder): one for one in found}

    def before(run: RunFiles) -> int:
        start = starts.get(str(run.folder))
        return 0 if start is None else before(start.before) + start.step

    return {str(run.folder): before(run) for run in runs}


def _start(run: RunFiles, runs: Sequence[RunFiles]) -> HandOff | None:
    for parent in _ancestors(run.lineage):
        for other in runs:
            if other is not run and other.lineage is not None and parent.step is not None:
                same = replace(other.lineage, step=parent.step).identity == parent.identity
                if same and other.lineage.made_by == "training":
                    return HandOff(other, run, parent.step)
    return None


def _ancestors(lineage: Lineage | None) -> Iterator[Lineage]:
    """Nearest first."""
    row = [] if lineage is None else list(lineage.parents)
    while row:
        yield from row
        row = [parent for one in row for parent in one.parents]
