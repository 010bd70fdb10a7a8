"""transformers' Trainer on our packs: its loop, wrapping and checkpoints; our data, divisor of the loss, groups and logs."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Optional

import torch
import torch.distributed as dist
from transformers import Trainer, TrainerCallback

from mindspeed_vita.checkpoint.native.ranks import on_first_rank
from mindspeed_vita.checkpoint.native.step_folder import TrainState
from mindspeed_vita.config import Recipe
from mindspeed_vita.data.batch import PackedBatch
from mindspeed_vita.data.loader import PackLoader
from mindspeed_vita.engine.faults import FailedSamples, TrainingDiverged
from mindspeed_vita.engine.metrics import MetricsLog
from mindspeed_vita.engine.progress import Progress
from mindspeed_vita.engine.stopping import StopRequest
from mindspeed_vita.integration.hf_trainer import checkpoints
from mindspeed_vita.integration.hf_trainer.parameter_groups import parameter_groups, share_of_rate
from mindspeed_vita.parallel.layout import ParallelLayout
from mindspeed_vita.parallel.shard import Sharder
from mindspeed_vita.platform import Platform


class PackTrainer(Trainer):
    """Trainer over packs.

    Args:
        recipe, layout, platform: the run.
        batches: this rank's packs.
        failed: record of samples that do not decode.
        fingerprint: of the data.
        sharing: how weights and optimizer are shared, for checkpoints.
        cpu_adam: take DeepSpeed's Adam for optimizer state in host memory; it is compiled when it is first used.
        stop: asked at the end of each step.
        log, progress: on rank 0.
        arguments: of Trainer.
    """

    optimizer: Any
    lr_scheduler: Any

    def __init__(
        self,
        recipe: Recipe,
        layout: ParallelLayout,
        platform: Platform,
        *,
        batches: PackLoader,
        failed: FailedSamples,
        fingerprint: str,
        sharing: str,
        cpu_adam: bool,
        stop: StopRequest,
        log: Optional[MetricsLog],
        progress: Optional[Progress],
        **arguments: Any,
    ) -> None:
        super().__init__(**arguments, callbacks=[_StepEnd(self)])
        self.recipe, self.layout, self.platform = recipe, layout, platform
        self.packs, self.failed, self.stop, self.fingerprint, self.sharing = batches, failed, stop, fingerprint, sharing
        self.log_file, self.progress, self.cpu_adam = log, progress, cpu_adam
        self.shard = Sharder(recipe, layout, platform)
        self.loss_is_scaled_for_ga = True  # compute_loss divides by the count of the whole global batch
        self.busy: list[float] = []
        self._loss, self._norm, self._count, self._learnt, self._samples = 0.0, 0.0, 1, 0, 0
        self._began, self._waited = time.perf_counter(), 0.0

    def get_train_dataloader(self) -> Any:
        """Our packs, from the one after the last step's."""
        return _Endless(self.packs)

    def get_batch_samples(self, epoch_iterator: Iterator[PackedBatch], num_batches: int, device: Any) -> tuple[list[Any], None]:
        """The packs of a step, and with them the number that the step's loss is divided by."""
        self._began, self._waited = time.perf_counter(), self.packs.waited
        step = self.state.global_step + 1
        batches = [self.failed.agree(next(epoch_iterator), self.layout, step) for _ in range(num_batches)]
        once = int(self.layout.cp_rank == 0)
        totals = torch.tensor([once * sum(batch.loss_count for batch in batches), once * sum(len(batch.sample_ids) for batch in batches)])
        totals = totals.to(self.platform.device)
        dist.all_reduce(totals)
        self._learnt, self._samples = totals.tolist()
        self._count, self._loss = max(self._learnt, 1), 0.0
        return [{"pack": batch} for batch in batches], None

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> torch.Tensor:
        """This rank's part of the loss times the number of ranks, as gradients are averaged over them."""
        losses_T = model(pack=self.shard(inputs["pack"]))
        part = losses_T.sum() / self._count
        self._loss += float(part.detach())
        return part * dist.get_world_size()

    def create_optimizer(self, model: Any = None) -> Any:
        """AdamW over the recipe's groups."""
        if self.optimizer is None:
            train = self.recipe.train
            groups = parameter_groups(self.model, train, self.recipe.model.vision.num_layers)
            if not groups:
                raise ValueError(f"train.modules={list(train.modules)} leaves nothing to train; name at least one module that has weights")
            settings: dict[str, Any] = {"lr": train.lr, "betas": (train.beta1, train.beta2), "eps": train.eps}
            if self.cpu_adam:
                from deepspeed.ops.adam import DeepSpeedCPUAdam

                self.optimizer = DeepSpeedCPUAdam(groups, adamw_mode=True, **settings)
            else:
                self.optimizer = torch.optim.AdamW(groups, **settings)
        return self.optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """The recipe's warm-up and cosine, for every group by its own peak."""
        if self.lr_scheduler is None:
            train = self.recipe.train
            inner = self.optimizer if optimizer is None else optimizer
            while hasattr(inner, "optimizer"):  # accelerate and ZeRO each wrap it; the schedule sets the rates of the innermost
                inner = inner.optimizer
            self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(inner, lambda step: share_of_rate(train, step))
            self._created_lr_scheduler = True
        return self.lr_scheduler

    def floating_point_ops(self, inputs: Any) -> int:
        """Not counted: `vita plan` does that."""
        return 0

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        if norm is None and self.is_deepspeed_enabled:
            norm = model.get_global_grad_norm()
        self._norm = float(norm.full_tensor() if hasattr(norm, "full_tensor") else norm) if norm is not None else math.nan
        return norm

    def finish_step(self) -> bool:
        """Logs a step; returns whether the ranks agree to stop. Collective.

        Raises:
            TrainingDiverged: the loss is not finite.
        """
        step, total = self.state.global_step, torch.tensor(self._loss, dtype=torch.float64)
        total = total.to(torch.float32 if self.platform.device.type == "npu" else torch.float64).to(self.platform.device)
        dist.all_reduce(total)
        loss = float(total)
        if not math.isfinite(loss):
            raise TrainingDiverged(
                f"step {step}: the loss is {loss}; continue from an earlier checkpoint with a lower train.lr, "
                f"or with train.precision=fp32 to find out why"
            )
        failed = self.failed.settle(learnt=self._learnt, step=step, last_step=self.recipe.train.steps, stop=self.stop)
        self.busy.append(time.perf_counter() - self._began)
        if self.log_file is not None and self.progress is not None:
            train = self.recipe.train
            speed = train.global_batch * self.recipe.data.seq_length / self.busy[-1]
            entry = {"step": step, "loss": loss, "grad_norm": self._norm, "supervised": self._learnt, "samples": self._samples}
            entry.update(failed=failed, lr=train.lr * share_of_rate(train, step - 1), seconds=self.busy[-1], tokens_per_second=speed)
            entry.update(data_seconds=self.packs.waited - self._waited, packs=step * train.global_batch)
            entry["memory"] = self.platform.memory().peak
            if step % self.recipe.logging.every == 0 or step in (1, train.steps):
                self.log_file.write(entry)
            self.progress.update(entry)
        return self.stop.agreed != 0

    def mark_saved(self) -> None:
        """Says that the checkpoint of this step is whole. Collective."""
        dist.barrier()
        step = self.state.global_step
        layout = {"tp": 1, "pp": 1, "cp": self.layout.cp_size, "dp": self.layout.dp_size}
        packs, ids = step * self.recipe.train.global_batch, tuple(sorted(self.failed.ids))
        state = TrainState(step=step, packs=packs, fingerprint=self.fingerprint, failed_samples=ids, layout=layout)
        folder = Path(self.args.output_dir) / f"checkpoint-{step}"
        on_first_rank(lambda: checkpoints.write_state(folder, state, self.recipe, self.sharing))


class _Endless:
    """The loader as Trainer takes it: an iterable without a length."""

    def __init__(self, packs: PackLoader) -> None:
        self.packs = packs

    def __iter__(self) -> Iterator[PackedBatch]:
        return iter(self.packs)


class _StepEnd(TrainerCallback):
    def __init__(self, trainer: PackTrainer) -> None:
        self._trainer = trainer

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        ends = self._trainer.finish_step()
        if ends or state.global_step == self._trainer.recipe.train.steps:
            control.should_save, control.should_training_stop = True, True
        return control

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        self._trainer.mark_saved()
        return control
