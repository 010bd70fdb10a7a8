"""One optimizer step: micro-batches through megatron.core's schedule, gradients summed and scaled, parameters updated."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Callable, Iterator, Optional

import torch
import torch.distributed as dist

from mindspeed_vita.config import Recipe
from mindspeed_vita.engine.faults import FailedSamples, TrainingDiverged
from mindspeed_vita.engine.stopping import StopRequest
from mindspeed_vita.parallel.layout import ParallelLayout
from mindspeed_vita.platform import Platform, megatron_compat


@dataclass(frozen=True, kw_only=True)
class StepResult:
    """What one step did, the same on every rank."""

    loss: float
    """Weighted sum over supervised tokens / their number (of samples with data.loss_weighting=sample), over all packs; 0 if none."""
    grad_norm: float
    """Before clipping."""
    supervised: int
    """What the loss was divided by: supervised tokens, or samples that have some (data.loss_weighting)."""
    samples: int
    failed: int
    """Samples that failed to decode for the first time."""


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
        stop: Optional[StopRequest] = None,
    ) -> None:
        from megatron.core.pipeline_parallel import get_forward_backward_func

        self.recipe, self.layout, self.platform = recipe, layout, platform
        self.model, self.optimizer, self.batches, self.failed = model, optimizer, batches, failed
        self.stop = stop
        self.micro_batches = recipe.train.global_batch // layout.dp_size
        self._schedule = get_forward_backward_func()
        self._samples = 0
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
        self._samples = 0
        reports = self._schedule(
            forward_step_func=self._forward,
            data_iterator=self._step_batches(step),
            model=self.model,
            num_microbatches=self.micro_batches,
            seq_length=self.recipe.data.seq_length,
            micro_batch_size=1,
            forward_only=False,
        )
        loss_sum, supervised, samples = self._sum(reports)
        loss = loss_sum / max(supervised, 1)
        self._check(step, "loss", loss)
        set_learning_rate()
        _, grad_norm, _ = self.optimizer.step()
        norm = float(grad_norm)
        self._check(step, "gradient norm", norm)
        failed = self.failed.settle(learnt=supervised, step=step, last_step=self.recipe.train.steps, stop=self.stop)
        return StepResult(loss=loss, grad_norm=norm, supervised=supervised, samples=samples, failed=failed)

    def _step_batches(self, step: int) -> Iterator[Any]:
        agreed = (self.failed.agree(next(self.batches), self.layout, step) for _ in range(self.micro_batches))
        if self.layout.pp_size == 1:
            return agreed
        # the stages agree on failures before the pipeline starts: inside it a later stage waits for an earlier one's output
        return iter(list(agreed))

    def _forward(self, batches: Iterator[Any], model: Any) -> tuple[torch.Tensor, Callable[[torch.Tensor], Any]]:
        from mindspeed_vita.parallel.shard import shard_batch

        batch = next(batches)
        self._samples += len(batch.sample_ids)
        inputs = shard_batch(
            batch,
            self.layout,
            self.platform.device,
            tokens_per_tile=self.recipe.model.tokens_per_tile,
            vision_parallel=self.recipe.parallel.vision_parallel,
            pinned_memory=self.platform.capabilities.pinned_memory,
        )
        supervised = inputs.loss_count

        def loss_func(losses_T: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
            total = losses_T.sum()
            # clones: the schedule divides and accumulates the tensors it is given in place
            return total, supervised.clone(), {"loss": total.detach().clone(), "supervised": supervised.clone()}

        return model(inputs), loss_func

    def _sum(self, reports: list[dict[str, torch.Tensor]]) -> tuple[float, int, int]:
        """Loss sum, supervised tokens and samples of the step over dp x cp, from the last stage to all."""
        layout = self.layout
        totals = torch.zeros(3, dtype=torch.float64)
        for report in reports if layout.is_last_stage else ():
            totals[0] += report["loss"].double().cpu()
            totals[1] += report["supervised"].double().cpu()
        totals[2] = self._samples if layout.cp_rank == 0 else 0
        if layout.dp_size * layout.cp_size > 1:
            dist.all_reduce(totals, group=layout.dp_cp_group)
        if layout.pp_size > 1:
            dist.broadcast(totals, src=dist.get_global_rank(layout.pp_group, layout.pp_size - 1), group=layout.pp_group)
        return float(totals[0]), int(totals[1]), int(totals[2])

    def _check(self, step: int, what: str, value: float) -> None:
        if not math.isfinite(value):
            raise TrainingDiverged(
                f"step {step}: the {what} is {value}; continue from an earlier checkpoint with a lower train.lr, "
                f"or with train.precision=fp32 to find out why"
            )
