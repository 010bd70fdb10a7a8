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
from transformers.trainer import SCHEDULER_NAME

from mindspeed_vita.checkpoint.native.ranks import on_first_rank
from mindspeed_vita.checkpoint.native.step_folder import TrainState
from mindspeed_vita.config import Recipe
from mindspeed_vita.data.batch import PackedBatch
from mindspeed_vita.data.loader import PackLoader
from mindspeed_vita.engine.faults import FailedSamples, TrainingDiverged, calmer_settings
from mindspeed_vita.engine.metrics import MetricsLog, is_logged
from mindspeed_vita.engine.module_norms import by_key
from mindspeed_vita.engine.objective import Objective
from mindspeed_vita.engine.progress import Progress
from mindspeed_vita.engine.step import StepResult
from mindspeed_vita.engine.step_clock import StepClock
from mindspeed_vita.engine.step_entry import StepEntries, StepTimes
from mindspeed_vita.engine.stopping import StopRequest
from mindspeed_vita.integration.hf_trainer import checkpoints, fully_sharded
from mindspeed_vita.integration.hf_trainer.module_norms import module_norms
from mindspeed_vita.integration.hf_trainer.parameter_groups import parameter_groups, share_of_rate
from mindspeed_vita.integration.hf_trainer.settings import FSDP2
from mindspeed_vita.integration.hf_trainer.step_packs import StepPacks
from mindspeed_vita.integration.hf_trainer.step_watch import StepWatch
from mindspeed_vita.integration.hf_trainer.universal import mend_optimizer
from mindspeed_vita.parallel.layout import ParallelLayout
from mindspeed_vita.parallel.shard import Sharder
from mindspeed_vita.platform import Platform
from mindspeed_vita.platform.phases import phase, timed


class PackTrainer(Trainer):
    """Trainer over packs.

    Args:
        recipe, layout, platform: the run.
        batches: this rank's packs.
        objective: sums up the losses of a pack, also by source.
        failed: record of samples that do not decode.
        fingerprint: of the data.
        sharing: how weights and optimizer are shared, for checkpoints.
        universal: the checkpoint to go on from is loaded in DeepSpeed's universal format.
        stop: asked at the end of each step.
        log, progress: on rank 0.
        watch: looks for a hang.
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
        objective: Objective,
        failed: FailedSamples,
        fingerprint: str,
        sharing: str,
        universal: bool,
        stop: StopRequest,
        log: Optional[MetricsLog],
        progress: Optional[Progress],
        watch: StepWatch,
        **arguments: Any,
    ) -> None:
        self.sharing = sharing
        super().__init__(**arguments, callbacks=[_StepEnd(self), watch])
        self.recipe, self.layout, self.platform = recipe, layout, platform
        self.packs, self.failed, self.stop, self.fingerprint = batches, failed, stop, fingerprint
        self.log_file, self.progress, self.universal = log, progress, universal
        self.objective = objective
        self.entries = StepEntries(recipe, platform)
        self.shard = Sharder(recipe, layout, platform)
        self.loss_is_scaled_for_ga = True  # compute_loss divides by the count of the whole global batch
        self.clock = StepClock(platform)
        self.saving = 0.0  # seconds that training stood still for saving, since the last logged step
        self.busy: list[float] = []
        self._norm, self._count = 0.0, 1
        self._module_norms: Optional[torch.Tensor] = None
        self._began, self._waited = time.perf_counter(), 0.0

    def get_train_dataloader(self) -> Any:
        """Our packs, from the one after the last step's."""
        return _Endless(self.packs)

    def set_initial_training_values(self, *arguments: Any, **named: Any) -> Any:
        """Trainer's, but the run is one epoch: where a checkpoint is of the last step, nothing is trained and the weights are loaded."""
        _, *others = super().set_initial_training_values(*arguments, **named)
        return 1, *others

    def get_batch_samples(self, epoch_iterator: Iterator[PackedBatch], num_batches: int, device: Any) -> tuple[list[Any], None]:
        """The packs of a step, and with them the number that the step's loss is divided by."""
        self._began, self._waited = time.perf_counter(), self.packs.waited
        self.clock.begin()
        self._module_norms = None
        step = self.state.global_step + 1
        batches = [self.failed.agree(next(epoch_iterator), self.layout, step) for _ in range(num_batches)]
        self._packs = StepPacks(self.recipe, batches, objective=self.objective)
        self._count = max(self._packs.count(self.layout), 1)
        return [{"pack": batch} for batch in batches], None

    def training_step(self, *arguments: Any, **named: Any) -> torch.Tensor:
        """Trainer's, timed: forward and backward pass of a pack. With DeepSpeed the last one of a step holds the update, too."""
        self._began_pass = self.clock.mark()
        with timed(self.clock.phases):
            loss = super().training_step(*arguments, **named)
        if not (self.is_deepspeed_enabled and self.accelerator.sync_gradients):
            self._end_pass()
        return loss

    def _end_pass(self) -> None:
        """A backward pass is over. After the last one of a step the gradients are whole, and not clipped yet."""
        self.clock.note("schedule", self._began_pass)
        self._computed = self.clock.mark()
        if self.accelerator.sync_gradients and is_logged(self.state.global_step + 1, self.recipe):
            self._module_norms = module_norms(self.model, self.sharing, self.platform.device)

    def begin_updates(self) -> None:
        """Training begins. DeepSpeed makes its update within the backward pass, so its engine is asked to tell when that comes."""
        if not self.is_deepspeed_enabled:
            return
        engine = self.accelerator.deepspeed_engine_wrapped.engine
        update = engine.step

        def told(*arguments: Any, **named: Any) -> Any:
            self._end_pass()
            return update(*arguments, **named)

        engine.step = told

    def end_update(self) -> None:
        """The optimizer has made its update: norm and clipping came before."""
        self.clock.note("optimizer", self._computed)

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> torch.Tensor:
        """This rank's part of the loss times the number of ranks, as gradients are averaged over them."""
        with phase("data"):
            pack = self.shard(inputs["pack"])
        with self.clock.part("forward"):
            result = self.objective(model(pack=pack), pack)
        self._packs.add(result)
        return result.sum / self._count * dist.get_world_size()

    def create_optimizer(self, model: Any = None) -> Any:
        """AdamW over the recipe's groups."""
        if self.optimizer is None:
            train = self.recipe.train
            groups = parameter_groups(self.model, train, self.recipe.model.vision.num_layers)
            if not groups:
                raise ValueError(f"train.modules={list(train.modules)} leaves nothing to train; name at least one module that has weights")
            self.optimizer = torch.optim.AdamW(groups, lr=train.lr, betas=(train.beta1, train.beta2), eps=train.eps)
            self._settings = [{key: group[key] for key in ("betas", "eps", "weight_decay")} for group in self.optimizer.param_groups]
        return self.optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """The recipe's warm-up and cosine, for every group by its own peak."""
        if self.lr_scheduler is None:
            train = self.recipe.train
            inner = _innermost(self.optimizer if optimizer is None else optimizer)
            self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(inner, lambda step: share_of_rate(train, step))
            self._created_lr_scheduler = True
        return self.lr_scheduler

    def save_model(self, output_dir: Optional[str] = None, _internal_call: bool = False) -> None:
        """Trainer's, but for FSDP2, where a checkpoint's weights lie with its optimizer and the export is written at the end."""
        if self.sharing != FSDP2:
            super().save_model(output_dir, _internal_call)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if self.sharing != FSDP2:
            super()._save_optimizer_and_scheduler(output_dir)
            return
        fully_sharded.save(self.model, _innermost(self.optimizer), Path(output_dir))
        if self.args.should_save:
            torch.save(self.lr_scheduler.state_dict(), Path(output_dir) / SCHEDULER_NAME)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        if self.sharing != FSDP2:
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_optimizer_and_scheduler(self, checkpoint: Any) -> None:
        if checkpoint is not None and self.sharing == FSDP2:
            fully_sharded.load(self.model, _innermost(self.optimizer), Path(checkpoint))
            self.lr_scheduler.load_state_dict(torch.load(Path(checkpoint) / SCHEDULER_NAME, weights_only=True))
            return
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None and self.universal and self.sharing.startswith("zero3"):
            mend_optimizer(_innermost(self.optimizer), self._settings, self.lr_scheduler.get_last_lr())

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
        step = self.state.global_step
        learnt = self._packs.totals(self.layout)
        loss = learnt["loss"]
        if not math.isfinite(loss):
            raise TrainingDiverged(
                f"step {step}: the loss is {loss}; start again in another checkpoint.directory with {calmer_settings(self.recipe)}"
            )
        failed = self.failed.settle(learnt=learnt["supervised"], step=step, last_step=self.recipe.train.steps, stop=self.stop)
        self.platform.synchronize()
        self.busy.append(time.perf_counter() - self._began)
        if self.log_file is not None and self.progress is not None:
            parts = {**self.clock.seconds(), "save_seconds": self.saving, **by_key(self._module_norms)}
            times = StepTimes(seconds=self.busy[-1], data_seconds=self.packs.waited - self._waited, parts=parts)
            result = StepResult(**learnt, grad_norm=self._norm, failed=failed)
            entry = self.entries.entry(step, result, times, rate=self.recipe.train.lr * share_of_rate(self.recipe.train, step - 1))
            if is_logged(step, self.recipe):
                self.log_file.write(entry)
                self.saving = 0.0
            self.progress.update(entry, result.report)
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


def _innermost(optimizer: Any) -> Any:
    """accelerate and ZeRO each wrap it; schedules and rates belong to the innermost."""
    while hasattr(optimizer, "optimizer"):
        optimizer = optimizer.optimizer
    return optimizer


class _Endless:
    """The loader as Trainer takes it: an iterable without a length."""

    def __init__(self, packs: PackLoader) -> None:
        self.packs = packs

    def __iter__(self) -> Iterator[PackedBatch]:
        return iter(self.packs)


class _StepEnd(TrainerCallback):
    def __init__(self, trainer: PackTrainer) -> None:
        self._trainer = trainer

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._trainer.begin_updates()

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._trainer.end_update()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        ends = self._trainer.finish_step()
        self._ended = time.perf_counter()
        if ends or state.global_step == self._trainer.recipe.train.steps:
            control.should_save, control.should_training_stop = True, True
        return control

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        self._trainer.mark_saved()
        self._trainer.saving += time.perf_counter() - self._ended
        return control
