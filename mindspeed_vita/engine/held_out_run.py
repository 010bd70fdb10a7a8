"""Held-out evaluation inside a run of the built-in engine: when it is due it measures, writes, marks the best step, and judges the end."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Optional

import torch.distributed as dist

from mindspeed_vita.checkpoint.gates import Gate, write_gate
from mindspeed_vita.checkpoint.native import atomic
from mindspeed_vita.checkpoint.native.ranks import gather, on_first_rank
from mindspeed_vita.config import Recipe
from mindspeed_vita.engine.faults import FailedSamples
from mindspeed_vita.engine.held_out import HeldOut
from mindspeed_vita.engine.held_out_packs import HeldOutPacks, describe_overlap, open_held_out
from mindspeed_vita.engine.held_out_watch import PACKS, HeldOutWatch
from mindspeed_vita.engine.metrics import MetricsLog
from mindspeed_vita.engine.optimizer import gather_weights
from mindspeed_vita.engine.progress import Progress
from mindspeed_vita.parallel.layout import ParallelLayout
from mindspeed_vita.platform import Platform

if TYPE_CHECKING:
    from mindspeed_vita.data.dataset import PackDataset


class RunEvaluation:
    """Held-out evaluation of one run. All methods are collective over the world.

    Args:
        recipe: the run, with eval.mixture.
        layout: this rank's place.
        platform: this rank's device.
        model: inside megatron.core's DDP.
        failed: the record of the training's failed samples; those of the held-out packs go to the same file.
        training: the data that is trained on.
        log: where losses are written and were written before; on the first rank only.

    Raises:
        ValueError: the held-out data does not fit the recipe.
    """

    def __init__(
        self,
        recipe: Recipe,
        layout: ParallelLayout,
        platform: Platform,
        *,
        model: Any,
        failed: FailedSamples,
        training: PackDataset,
        log: Optional[MetricsLog],
    ) -> None:
        self.recipe, self.model, self.log = recipe, model, log
        self.directory = Path(recipe.checkpoint.directory)
        dataset = open_held_out(recipe, layout)
        own = FailedSamples(failed.quarantine, run=failed.run, budget=dataset.failure_budget())
        self.packs = HeldOutPacks(recipe, layout, dataset=dataset, failed=own)
        self.warning = describe_overlap(recipe, self.packs, training) if dist.get_rank() == 0 else None
        self.held_out = HeldOut(recipe, layout, platform, model=model, packs=self.packs)
        lines = gather([] if log is None else log.held_out)[0]
        self.watch = HeldOutWatch(recipe, self.packs.identity, lines)
        self.unprotected: Optional[str] = None
        """A line about the step that pruning spared up to now and spares no more; first rank only."""
        on_first_rank(self._settle_best)

    @property
    def exhausted(self) -> bool:
        """Whether the run is to end, by eval.patience."""
        return self.watch.exhausted

    def describe(self) -> list[str]:
        """Lines for the start of the run, on the first rank."""
        which = f"{self.packs.count:,} of {self.packs.dataset.describe()}" if self.recipe.eval.packs else self.packs.dataset.describe()
        lines = (f"held-out packs every {self.recipe.eval.every} steps: {which}", self.warning, self.unprotected)
        return [line for line in lines if line]

    def if_due(self, step: int, progress: Optional[Progress]) -> bool:
        """Measures a step that is due.

        Returns:
            whether the step is to be saved as the best one (eval.keep_best).
        """
        if not self.watch.due(step):
            return False
        # which modules a pack calls depends on its media while nothing trains: ranks would gather weights in different orders
        gather_weights(self.model)
        scores = self.held_out.measure(step)
        if self.log is not None and progress is not None:
            self.log.write({"step": step, **scores.entry(), PACKS: self.watch.identity})
            progress.line(f"{self.recipe.name} step {step}/{self.recipe.train.steps} {scores.describe()}")
        improved = self.watch.add(step, scores.loss)
        if improved:
            self._mark_best()
        return improved and self.recipe.eval.keep_best

    def finish(self, step: int) -> Optional[Gate]:
        """Writes the gate of the last step, and that of the best one where it is kept; returns that of the last step."""
        gate = self.watch.gate(step) if step in self.watch.losses else None
        if gate is None:
            return None
        best = self.watch.best if self.recipe.eval.keep_best else None

        def write() -> None:
            for number in {step, step if best is None else best}:
                found = self.watch.gate(number)
                assert found is not None
                write_gate(self.directory / atomic.step_name(number), found)

        on_first_rank(write)
        return gate

    def _settle_best(self) -> None:
        """Marks the best step of the losses that are known now, and looks for one that was spared up to now and is spared no more."""
        before = atomic.kept_best(self.directory)
        self._write_best()
        if before is None or before == atomic.kept_best(self.directory):
            return
        why = "these held-out packs have another best step, or none yet" if self.recipe.eval.keep_best else "eval.keep_best is false"
        self.unprotected = (
            f"WARNING: {before} was kept as the best step and is no longer: {why}. checkpoint.keep may remove it; copy it, or restore the "
            "settings of the run before"
        )

    def _mark_best(self) -> None:
        """Before the step is saved, because saving prunes. Until it is on the disk, pruning spares the best one before it."""
        on_first_rank(self._write_best)

    def _write_best(self) -> None:
        best = self.watch.best if self.recipe.eval.keep_best else None
        atomic.mark_best(self.directory, best, self.watch.losses.get(best or 0, 0.0))
