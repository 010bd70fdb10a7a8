"""One optimizer step: micro-batches through megatron.core's schedule, gradients summed and scaled, parameters updated."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Callable, Iterator, Optional

import torch
import torch.distributed as dist

from mindspeed_vita.config import Recipe
from mindspeed_vita.engine.faults import FailedSamples, TrainingDiverged
from mindspeed_vita.engine.objective import Objective, averages, report_table
from mindspeed_vita.engine.stopping import StopRequest
from mindspeed_vita.engine.work import Work, pack_work
from mindspeed_vita.parallel.chunks import for_schedule
from mindspeed_vita.parallel.layout import ParallelLayout
from mindspeed_vita.parallel.shard import Sharder
from mindspeed_vita.platform import Platform, megatron_compat


@dataclass(frozen=True, kw_only=True)
class StepResult:
    """What one step did, the same on every rank."""

    loss: float
    """The objective's sum / its count, over all packs; 0 if the count is 0."""
    grad_norm: float
    """Before clipping."""
    supervised: int
    """What the loss was divided by: supervised tokens, samples that have some (data.loss_weighting), or what the objective counts."""
    samples: int
    failed: int
    """Samples that failed to decode for the first time."""
    flops: float = 0.0
    """Operations that the step's mathematics needs, over all ranks (work.py)."""
    flops_attention: float = 0.0
    """Those of the decoder's attention."""
    flops_tower: float = 0.0
    """Those of tower and projector."""
    report: dict[str, float] = field(default_factory=dict)
    """Further averages of the objective, such as the loss of each source that the step met."""


class Stepper:
    """Runs steps on one rank.

    Args:
        recipe: the run.
        layout: this rank's place.
        platform: this rank's device.
        model: the model inside megatron.core's DDP.
        optimizer: DistributedOptimizer over it.
        batches: endless packs of this data-parallel rank.
        failed: record of failed samples.
        objective: what is optimised (objective.build_objective).
        stop: what the ranks agree on at the end of each step; None: they are not asked.
    """

    def __init__(
        self,
        recipe: Recipe,
        layout: ParallelLayout,
        platform: Platform,
        *,
        model: Any,
        optimizer: Any,
        batches: Iterator[Any],
        failed: FailedSamples,
        objective: Objective,
        stop: Optional[StopRequest] = None,
    ) -> None:
        from megatron.core.pipeline_parallel import get_forward_backward_func

        self.recipe, self.layout, self.platform = recipe, layout, platform
        self.model, self.optimizer, self.batches, self.failed = model, optimizer, batches, failed
        self.objective, self.stop = objective, stop
        self.shard = Sharder(recipe, layout, platform)
        self.micro_batches = recipe.train.global_batch // layout.dp_size
        self._schedule = get_forward_backward_func()
        self._samples, self._work = 0, Work()
        config = model.config
        config.finalize_model_grads_func = megatron_compat.finalize_model_grads

    def run(self, step: int, set_learning_rate: Callable[[], None]) -> StepResult:
        """Train on the next global batch.

        Args:
            step: its number, from 1.
            set_learning_rate: called once before the update.

        Raises:
            TrainingDiverged: the loss or the gradient norm is not finite; then the weights in memory are of no use.
        """
        self.model.zero_grad_buffer()
        self.optimizer.zero_grad()
        self._samples, self._work = 0, Work()
        reports = self._schedule(
            forward_step_func=self._forward,
            **for_schedule(self.model, self._step_batches(step)),
            num_microbatches=self.micro_batches,
            seq_length=self.recipe.data.seq_length,
            micro_batch_size=1,
            forward_only=False,
        )
        sums, counts, (samples, *flops) = self._sum(reports)
        supervised = int(counts[0])
        loss = sums[0] / max(supervised, 1)
        self._check(step, "loss", loss)
        set_learning_rate()
        _, grad_norm, _ = self.optimizer.step()
        norm = float(grad_norm)
        self._check(step, "gradient norm", norm)
        with self.platform.host_work():
            failed = self.failed.settle(learnt=supervised, step=step, last_step=self.recipe.train.steps, stop=self.stop)
        report = averages(self.objective.names, sums[1:], counts[1:])
        return StepResult(
            loss=loss,
            grad_norm=norm,
            supervised=supervised,
            samples=int(samples),
            failed=failed,
            flops=flops[0],
            flops_attention=flops[1],
            flops_tower=flops[2],
            report=report,
        )

    def _step_batches(self, step: int) -> Iterator[Any]:
        # one by one, also in a pipeline: a pack is taken when the schedule reaches its micro-batch
        return (self._agree(next(self.batches), step) for _ in range(self.micro_batches))

    def _agree(self, batch: Any, step: int) -> Any:
        with self.platform.host_work():
            agreed = self.failed.agree(batch, self.layout, step)
            self._work += pack_work(self.recipe, agreed)
        self._samples += len(agreed.sample_ids)
        return agreed

    def _forward(self, batches: Iterator[Any], model: Any) -> tuple[torch.Tensor, Callable[[torch.Tensor], Any]]:
        batch = next(batches)
        with self.platform.host_work():
            inputs = self.shard(batch)

        def loss_func(losses_T: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
            result = self.objective(losses_T, inputs)
            # the report is made first, and the count cloned: the schedule divides and accumulates the tensors it is given in place
            return result.sum, result.count.clone(), report_table(result, self.objective.names)

        return model(inputs), loss_func

    def _sum(self, reports: list[torch.Tensor]) -> tuple[list[float], list[float], list[float]]:
        """Sums and counts of the loss and of each reported name, and of the packs, over dp x cp, from the last stage to all.

        Of the packs: samples, operations in all, in attention, and in the tower.
        """
        layout, num_rows = self.layout, 1 + len(self.objective.names)
        of_packs = [self._samples, self._work.total, self._work.attention, self._work.tower]
        totals = torch.zeros(2 * num_rows + len(of_packs), dtype=torch.float64)
        for table in torch.stack(reports).cpu().double() if layout.is_last_stage else ():
            totals[: 2 * num_rows] += table.flatten()
        if layout.cp_rank == 0:  # a pack is counted once
            totals[2 * num_rows :] = torch.tensor(of_packs, dtype=torch.float64)
        if layout.dp_size * layout.cp_size > 1:
            dist.all_reduce(totals, group=layout.dp_cp_group)
        if layout.pp_size > 1:
            dist.broadcast(totals, src=dist.get_global_rank(layout.pp_group, layout.pp_size - 1), group=layout.pp_group)
        rows = totals[: 2 * num_rows].view(num_rows, 2)
        return rows[:, 0].tolist(), rows[:, 1].tolist(), totals[2 * num_rows :].tolist()

    def _check(self, step: int, what: str, value: float) -> None:
        if not math.isfinite(value):
            raise TrainingDiverged(
                f"step {step}: the {what} is {value}; continue from an earlier checkpoint with a lower train.lr, "
                f"or with train.precision=fp32 to find out why"
            )
