"""One optimizer step: micro-batches through megatron.core's schedule, gradients summed and scaled, parameters updated."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Callable, Iterator, Optional

import torch
import torch.distributed as dist

from mindspeed_vita.config import Recipe
from mindspeed_vita.engine.faults import FailedSamples, TrainingDiverged, calmer_settings
from mindspeed_vita.engine.module_norms import by_key
from mindspeed_vita.engine.objective import Objective, averages, report_table
from mindspeed_vita.engine.optimizer import clip_gradients
from mindspeed_vita.engine.step_clock import StepClock
from mindspeed_vita.engine.stopping import StopRequest
from mindspeed_vita.engine.work import Work, pack_work
from mindspeed_vita.parallel.chunks import for_schedule
from mindspeed_vita.parallel.layout import ParallelLayout
from mindspeed_vita.parallel.shard import Sharder
from mindspeed_vita.platform import Platform, megatron_compat
from mindspeed_vita.platform.phases import phase, timed


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
    tiles: int
    failed: int
    """Samples that failed to decode for the first time."""
    flops: float = 0.0
    """Operations that the step's mathematics needs, over all ranks (work.py)."""
    flops_attention: float = 0.0
    """Those of the decoder's attention."""
    flops_tower: float = 0.0
    """Those of tower and projector."""
    bad: int = 0
    """What was wrong with loss or norm, so that no update was made (bad_numbers.py); 0: nothing."""
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
        stop: what the ranks agree on in each step; None: they are not asked.
        judge: of (loss, gradient norm): 0, or a code where they are bad. Then all ranks leave the update out. None: numbers that are
            not finite raise TrainingDiverged.
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
        judge: Optional[Callable[[float, float], int]] = None,
    ) -> None:
        from megatron.core.pipeline_parallel import get_forward_backward_func

        self.recipe, self.layout, self.platform = recipe, layout, platform
        self.model, self.optimizer, self.batches, self.failed = model, optimizer, batches, failed
        self.objective, self.stop, self.judge = objective, stop, judge
        self.shard = Sharder(recipe, layout, platform)
        self.micro_batches = recipe.train.global_batch // layout.dp_size
        self._schedule = get_forward_backward_func()
        self.clock = StepClock(platform)
        self._module_norms: Optional[torch.Tensor] = None
        self._samples, self._tiles, self._work = 0, 0, Work()
        config = model.config
        config.finalize_model_grads_func = megatron_compat.finalize_model_grads

    def run(self, step: int, set_learning_rate: Callable[[], None]) -> StepResult:
        """Train on the next global batch. Afterwards `clock` knows where the time went.

        Args:
            step: its number, from 1.
            set_learning_rate: called once before the update.

        Raises:
            TrainingDiverged: the loss or the gradient norm is not finite, and there is no judge.
        """
        self.clock.begin()
        with timed(self.clock.phases):
            return self._run(step, set_learning_rate)

    def _run(self, step: int, set_learning_rate: Callable[[], None]) -> StepResult:
        self.model.zero_grad_buffer()
        self.optimizer.zero_grad()
        self._samples, self._tiles, self._work = 0, 0, Work()
        with self.clock.part("schedule"):
            reports = self._schedule(
                forward_step_func=self._forward,
                **for_schedule(self.model, self._step_batches(step)),
                num_microbatches=self.micro_batches,
                seq_length=self.recipe.data.seq_length,
                micro_batch_size=1,
                forward_only=False,
            )
        sums, counts, (samples, tiles, *flops) = self._sum(reports)
        supervised = int(counts[0])
        loss = sums[0] / max(supervised, 1)
        set_learning_rate()
        norm, failed, bad = self._update(step, loss, supervised)
        report = averages(self.objective.names, sums[1:], counts[1:])
        return StepResult(
            loss=loss,
            grad_norm=norm,
            supervised=supervised,
            samples=int(samples),
            tiles=int(tiles),
            failed=failed,
            flops=flops[0],
            flops_attention=flops[1],
            flops_tower=flops[2],
            bad=bad,
            report=report,
        )

    def _update(self, step: int, loss: float, supervised: int) -> tuple[float, int, int]:
        """The update, unless the numbers are bad on any rank.

        Returns:
            the gradient norm before clipping, new failures, and what is wrong with the numbers.
        """
        settle = partial(self.failed.settle, learnt=supervised, step=step, last_step=self.recipe.train.steps, stop=self.stop)
        if self.judge is None or self.stop is None:
            self._check(step, "loss", loss)
            with phase("optimizer"):
                norm = float(self.optimizer.step()[1])
            self._check(step, "gradient norm", norm)
            with self.platform.host_work():
                return norm, settle(), 0
        with phase("optimizer"):
            norm, self._module_norms = clip_gradients(self.optimizer, self.model.module)
        self.stop.bad_asked = self.judge(loss, norm)
        with self.platform.host_work():
            failed = settle()
        if not self.stop.bad_agreed:
            with phase("optimizer"):
                self.optimizer.step_with_ready_grads()
        return norm, failed, self.stop.bad_agreed

    def module_norms(self) -> dict[str, float]:
        """The last step's gradient norm of each module that has gradients, by its key in metrics.jsonl. None without a judge.

        Waits for the device.
        """
        return by_key(self._module_norms)

    def _step_batches(self, step: int) -> Iterator[Any]:
        # one by one, also in a pipeline: a pack is taken when the schedule reaches its micro-batch
        return (self._next_batch(step) for _ in range(self.micro_batches))

    def _next_batch(self, step: int) -> Any:
        with phase("data"):
            return self._agree(next(self.batches), step)

    def _agree(self, batch: Any, step: int) -> Any:
        with self.platform.host_work():
            agreed = self.failed.agree(batch, self.layout, step)
            self._work += pack_work(self.recipe, agreed)
        self._samples += len(agreed.sample_ids)
        self._tiles += len(agreed.tile_first_token)
        return agreed

    def _forward(self, batches: Iterator[Any], model: Any) -> tuple[torch.Tensor, Callable[[torch.Tensor], Any]]:
        batch = next(batches)
        with phase("data"), self.platform.host_work():
            inputs = self.shard(batch)

        def loss_func(losses_T: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
            result = self.objective(losses_T, inputs)
            # the report is made first, and the count cloned: the schedule divides and accumulates the tensors it is given in place
            return result.sum, result.count.clone(), report_table(result, self.objective.names)

        with self.clock.part("forward"):
            return model(inputs), loss_func

    def _sum(self, reports: list[torch.Tensor]) -> tuple[list[float], list[float], list[float]]:
        """Sums and counts of the loss and of each reported name, and of the packs, over dp x cp, from the last stage to all.

        Of the packs: samples, tiles, operations in all, in attention, and in the tower.
        """
        layout, num_rows = self.layout, 1 + len(self.objective.names)
        of_packs = [self._samples, self._tiles, self._work.total, self._work.attention, self._work.tower]
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
            raise TrainingDiverged(f"step {step}: the {what} is {value}; start again with {calmer_settings(self.recipe)}")
