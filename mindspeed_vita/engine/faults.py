"""Samples that cannot be decoded, and runs that went wrong."""

from __future__ import annotations

import os
from collections import Counter
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any, Optional

import torch
import torch.distributed as dist

from mindspeed_vita.config import Recipe
from mindspeed_vita.data.budget import FailureBudget, kind_of
from mindspeed_vita.engine import metrics
from mindspeed_vita.engine.stopping import StopRequest
from mindspeed_vita.parallel.layout import ParallelLayout
from mindspeed_vita.wording import counted

if TYPE_CHECKING:
    from mindspeed_vita.data.dataset import PackDataset

MOST_EMPTY_STEPS = 5
"""Steps in a row that may pass without a supervised token before the run stops."""


class TrainingDiverged(RuntimeError):
    """The loss or the gradient norm is not a finite number."""


def calmer_settings(recipe: Recipe) -> str:
    """What a run whose numbers went bad can be started with, for messages: "start again with ..."."""
    if recipe.train.precision == "fp32":
        return "a lower train.lr"
    # what validate refuses together with fp32
    halves = {"train.grad_reduce": recipe.train.grad_reduce, "parallel.ring_gradients": recipe.parallel.ring_gradients}
    exact = ["train.precision", *(key for key, value in halves.items() if value == "bf16")]
    return f"a lower train.lr, or with {' '.join(f'{key}=fp32' for key in exact)} to find out why"


_TAG = 1
"""Of messages about failures. Hidden states travel between the same ranks with tag 0, and arrive in another order than they are sent."""


class FailedSamples:
    """The record of samples that failed: agreed on by all ranks, so that each of them masks the same labels, for good.

    A sample that failed once stays masked, also in later epochs and after a resume: the curve does not depend on whether a
    disk that was ill has recovered.

    Args:
        quarantine: JSONL file for the reasons.
        known: sample ids from a checkpoint.
        run: what tells this run's lines from those of others in the same file; the "run" of metrics.truncate.
        budget: stops the run where a source has too many failures; None lets all pass.
    """

    def __init__(
        self,
        quarantine: Path,
        known: tuple[int, ...] = (),
        *,
        run: Optional[str] = None,
        budget: Optional[FailureBudget] = None,
    ) -> None:
        self.quarantine, self.run = quarantine, run
        self._run = {} if run is None else {"run": run}
        self.ids: set[int] = set(known)
        self._budget = budget
        self._reasons: dict[int, str] = {}
        self._new: dict[int, str] = {}
        """Failures of this step, with their reason where this rank met it."""
        self._sent: list[dist.Work] = []
        """What the later pipeline stages may still have to receive; a work keeps its tensor alive."""
        self.empty_steps = 0
        """Steps without a supervised token, up to now and without a break."""

    def agree(self, batch: Any, layout: ParallelLayout, step: int) -> Any:
        """The batch with every failure of the tp x cp x pp group applied. Collective over tp x cp.

        Only the first pipeline stage decodes. It tells the later ones and does not wait for them, and they wait for it. So a stage may
        ask when the pipeline reaches the micro-batch, and holds no pack before that.

        Args:
            batch: PackedBatch; its `failed` holds what this rank met.
            layout: this rank's place.
            step: step the batch is for, noted in the quarantine file.
        """
        self._note(batch.failures, step)
        known = torch.tensor(sorted(self.ids), dtype=batch.sample_ids.dtype)
        failed = (batch.failed | torch.isin(batch.sample_ids, known)).to(torch.uint8)
        if failed.numel():
            self._share(failed, layout)
        reasons = {int(failure.sample_id): failure.reason for failure in batch.failures}
        for number in set(batch.sample_ids[failed.bool()].tolist()) - self.ids:
            self._new[number] = reasons.get(number) or self._new.get(number, "")
        return batch.with_failed(failed.bool())

    def _share(self, failed: torch.Tensor, layout: ParallelLayout) -> None:
        """Failures that the first stage met, in place on every rank that shares the pack."""
        if layout.tile_group_size > 1 and layout.is_first_stage:
            dist.all_reduce(failed, dist.ReduceOp.MAX, group=layout.tp_cp_group)
        if layout.pp_size == 1:
            return
        if not layout.is_first_stage:
            told = torch.zeros_like(failed)
            dist.recv(told, dist.get_global_rank(layout.pp_group, 0), group=layout.pp_group, tag=_TAG)
            torch.maximum(failed, told, out=failed)
            return
        self._sent = [work for work in self._sent if not work.is_completed()]
        for stage in range(1, layout.pp_size):
            work = dist.isend(failed, dist.get_global_rank(layout.pp_group, stage), group=layout.pp_group, tag=_TAG)
            assert work is not None, "this rank is in its own pipeline group"
            self._sent.append(work)

    def settle(
        self,
        group: Optional[dist.ProcessGroup] = None,
        *,
        learnt: float,
        step: int,
        last_step: int,
        stop: Optional[StopRequest] = None,
    ) -> int:
        """Share this step's failures with every rank, and whether one was told to stop. Collective over the world.

        Args:
            group: all ranks, in a group that takes host tensors; None: the default group does.
            learnt: what the loss of the step was divided by, of this rank's packs or of all; 0: no token was supervised.
            step: number of the step, from 1.
            last_step: of the run.
            stop: what the ranks agree on is set in it, in the same all-reduce.

        Returns:
            How many samples failed for the first time.

        Raises:
            ValueError: a source is over its budget, or nothing was learnt for too long; on every rank.
        """
        for work in self._sent:
            work.wait()
        self._sent = []
        new = [self._new]
        asked, save, writing, bad = 0, False, False, 0
        if stop is not None:
            asked, save, writing, bad = stop.asked, stop.save_asked, stop.writing_asked, stop.bad_asked
        empty = not learnt
        if dist.get_world_size() > 1:
            told = torch.tensor([len(self._new), asked, int(save), int(writing), bad, int(not empty)])
            dist.all_reduce(told, dist.ReduceOp.MAX, group=group)
            count, asked, save, writing, bad, some = told.tolist()
            empty = not some
            if count:
                new = [{} for _ in range(dist.get_world_size(group))]
                dist.all_gather_object(new, self._new, group=group)
        if stop is not None:
            stop.agreed, stop.save_agreed, stop.writing_agreed, stop.bad_agreed = asked, bool(save), bool(writing), bad
        found = set().union(*new) - self.ids
        self.ids |= found
        self._new = {}
        for failures in new:
            self._reasons.update({number: reason for number, reason in failures.items() if reason})
        if found and self._budget is not None:
            self._budget.check(sorted(self.ids), self._reasons)
        self._count_empty(empty, step, last_step)
        return len(found)

    def _count_empty(self, empty: bool, step: int, last_step: int) -> None:
        """Counts steps in a row without a supervised token, and stops a run that learns nothing.

        Raises:
            ValueError: there were too many, or the run was short and had no other.
        """
        self.empty_steps = self.empty_steps + 1 if empty else 0
        if self.empty_steps < MOST_EMPTY_STEPS and not (empty and step == last_step == self.empty_steps):
            return
        kinds = Counter(map(kind_of, self._reasons.values())).most_common(3)
        why = "; ".join(f"{count:,} x {kind}" for kind, count in kinds) or "no sample failed: look at a pack with `vita data show`"
        raise ValueError(
            f"nothing was learnt in steps {step - self.empty_steps + 1} to {step}: their samples have no supervised token; "
            f"{counted(len(self.ids), 'sample')} failed to decode ({why}); {self.quarantine} names each: repair them, and start again"
        )

    def note_skipped(self, skipped: Any) -> None:
        """Write down the samples that the index left out (once, at the start of a run)."""
        entries = [
            {**self._run, "kind": "skipped", "step": 0, "time": _now(), "where": str(item.where), "reason": str(item.reason)}
            for item in skipped
        ]
        if entries:
            metrics.append(self.quarantine, entries)

    def _note(self, failures: Any, step: int) -> None:
        entries = [
            {
                **self._run,
                "kind": "failed",
                "step": step,
                "time": _now(),
                **{key: getattr(item, key) for key in ("sample_id", "source", "path", "reason")},
            }
            for item in failures
            if int(item.sample_id) not in self.ids
        ]
        if entries:
            metrics.append(self.quarantine, entries)


def open_failed_samples(recipe: Recipe, dataset: PackDataset, *, step: int, known: tuple[int, ...] = ()) -> FailedSamples:
    """The record of a run's failed samples, with its quarantine file ready. Collective over the world.

    Args:
        recipe: the run.
        dataset: its packs.
        step: optimizer steps done; what the file says of later ones goes. At 0 it takes down what the index left out.
        known: samples that had failed by then.

    Raises:
        OSError: the file cannot be written; names it.
    """
    directory = recipe.checkpoint.directory
    quarantine = Path(recipe.data.quarantine or Path(directory) / "quarantine.jsonl")
    run = os.path.abspath(directory)  # tells this run's lines apart in a file that runs share
    leads = dist.get_rank() == 0
    if leads:
        quarantine.parent.mkdir(parents=True, exist_ok=True)
        metrics.truncate(quarantine, step, run=run)
    dist.barrier()  # nobody adds to the file before it was truncated
    failed = FailedSamples(quarantine, known, run=run, budget=dataset.failure_budget())
    if leads and step == 0:
        failed.note_skipped(dataset.skipped)
    return failed


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")
