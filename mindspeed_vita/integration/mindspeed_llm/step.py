"""One micro-batch and one step as MindSpeed-LLM's `pretrain` calls them: our batch, our loss, and what must happen between steps."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import timedelta
from functools import partial, wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, Optional

import torch
import torch.distributed as dist

from mindspeed_vita.config import DebugConfig, Recipe
from mindspeed_vita.data.batch import PackedBatch
from mindspeed_vita.data.loader import PackLoader
from mindspeed_vita.engine.faults import FailedSamples
from mindspeed_vita.engine.held_out_packs import HeldOutPacks
from mindspeed_vita.engine.module_dump import ModuleDump, bare
from mindspeed_vita.engine.objective import Objective, report_table
from mindspeed_vita.integration.mindspeed_llm.arguments import megatron_arguments
from mindspeed_vita.integration.mindspeed_llm.chunk_passes import ChunkPasses, chunk_of
from mindspeed_vita.integration.mindspeed_llm.evaluation import HeldOutEvaluation
from mindspeed_vita.integration.mindspeed_llm.high_availability import copies_of_optimizer
from mindspeed_vita.integration.mindspeed_llm.run_watch import RunWatch
from mindspeed_vita.integration.mindspeed_llm.telemetry import StepLog
from mindspeed_vita.models.inputs import ModelInputs
from mindspeed_vita.parallel.layout import ParallelLayout
from mindspeed_vita.parallel.shard import Sharder
from mindspeed_vita.platform import Platform
from mindspeed_vita.platform.phases import phase

if TYPE_CHECKING:
    from mindspeed_vita.data.dataset import PackDataset

LOSS = "lm loss"
"""Under which Megatron prints the loss."""
_GRAD_NORM = 4
"""Its place behind the losses in what Megatron's train_step returns."""


class ForwardStep:
    """Megatron's forward_step_func: takes the next pack, runs the model on this rank's share of it.

    The data iterator yields numbers of packs, counted and resumed by Megatron's own sampler; the packs come from a PackLoader, which
    deals those of a step by their cost. The two must count alike.

    Args:
        platform: whose device tensors go to.
        watch: told of each step and held-out pack.
    """

    def __init__(self, platform: Platform, watch: RunWatch) -> None:
        self.platform, self.watch = platform, watch
        self.dump = ModuleDump(DebugConfig(), Path())

    def open(
        self,
        recipe: Recipe,
        layout: ParallelLayout,
        loader: PackLoader,
        *,
        failed: FailedSamples,
        objective: Objective,
        step: int,
    ) -> None:
        """Starts reading. Collective over the world.

        Args:
            recipe: the run.
            layout: this rank's place.
            loader: this rank's packs, from the first that was not consumed.
            failed: record of failed samples.
            objective: what is optimised.
            step: optimizer steps done.
        """
        self.recipe, self.layout, self.failed, self.done = recipe, layout, failed, step
        self._objective, self._shard = objective, Sharder(recipe, layout, self.platform)
        # Megatron divides what it prints by all steps since the last line, also where a source was absent from some of them
        self.reported = objective.names if recipe.logging.every == 1 else ()
        self.host = _host_groups(layout)
        copies = copies_of_optimizer(megatron_arguments())
        self.log = StepLog(recipe, self.host, self.platform, loader, names=objective.names, step=step, copies=copies)
        self.evaluation: Optional[HeldOutEvaluation] = None
        self._micro_batches = loader.micro_batches
        self._numbers, self._loaded = loader.counted(), iter(loader)
        self._packs: ChunkPasses[tuple[int, PackedBatch]] = ChunkPasses((), 1)

    def hold_out(self, dataset: PackDataset, failed: FailedSamples) -> HeldOutPacks:
        """Sets up the held-out evaluation. Collective over the world, after `open`.

        Args:
            dataset: the held-out data.
            failed: record of those of its samples that do not decode.

        Returns:
            What is evaluated.

        Raises:
            ValueError: the data has fewer packs than eval.packs.
        """
        packs = HeldOutPacks(self.recipe, self.host, dataset=dataset, failed=failed, whole_batches=True)
        self.evaluation = HeldOutEvaluation(self.recipe, self.layout, self._shard, packs, loss=LOSS, log=self.log)
        if self.done == self.recipe.train.steps:  # Megatron evaluates before a step only where none is left
            self.evaluation.prepare(self.done)
        return packs

    def start_step(self) -> None:
        """Packs of the next step, each taken when Megatron's schedule reaches its micro-batch."""
        self._learnt = 0
        self.watch.step_begins()
        if self.evaluation is not None:
            self.evaluation.drop()
        self.log.begin()
        self._packs = ChunkPasses((self._next() for _ in range(self._micro_batches)), self.recipe.parallel.virtual_stages)

    def _next(self) -> tuple[int, PackedBatch]:
        """The next pack, which its first pass counts, and its number."""
        batch = self.failed.agree(next(self._loaded), self.host, self.done + 1)
        self._learnt += batch.loss_count
        self.log.count(batch)
        return next(self._numbers), batch

    def finish_step(self, losses: dict[str, torch.Tensor], *, grad_norm: Any, rate: float) -> None:
        """Every rank learns which samples failed in the step, and whether to stop after it. The step is logged. Collective over the world.

        Args:
            losses: Megatron's averages of the step; empty before the last stage.
            grad_norm: before clipping.
            rate: the recipe's learning rate in this step.
        """
        step, learnt = self.done + 1, self._learnt
        told: dict[str, Any] = {"learnt": learnt, "step": step, "last_step": self.recipe.train.steps, "stop": self.watch.stop}
        failed = self.failed.settle(self.host.dp_cp_group, **told)
        self.log.finish(step, losses.get(LOSS), grad_norm=grad_norm, rate=rate, failed=failed)
        if self.failed.empty_steps and dist.get_rank() == 0:
            print(f"step {step}: no token was supervised, nothing was learnt", flush=True)
        self.done += 1
        if self.evaluation is not None:
            self.evaluation.prepare(self.done)
        self.watch.step_ended()

    def __call__(self, numbers: Iterator[Any], model: Any) -> tuple[torch.Tensor, Callable[[torch.Tensor], Any]]:
        """Losses of one micro-batch's tokens (hidden states before the last stage), and what makes a loss of them.

        While the model is in evaluation mode, scores of a held-out pack instead.
        """
        if not model.training:
            assert self.evaluation is not None, "Megatron evaluates only where there is held-out data"
            next(numbers)  # its sampler counts on; the packs are the same each time
            self.watch.step_begins()
            return self.evaluation(model)
        dealt = int(next(numbers))
        with phase("data"):
            expected, batch = self._packs.take(chunk_of(model))
            inputs = self._shard(batch)
        assert dealt == expected, f"Megatron's sampler counts pack {dealt}, the loader {expected}"
        with self.log.clock.part("forward"):
            return model(inputs), partial(self._loss, inputs)

    def _loss(self, inputs: ModelInputs, losses_T: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, dict[str, Any]]:
        """(sum to differentiate, what it is divided by, report): Megatron's loss function.

        core 0.12 sums the divisor over data parallelism only, so each context-parallel rank gives that of the whole pack.
        """
        result = self._objective(losses_T, inputs)
        table = report_table(result, self._objective.names)
        dist.all_reduce(table, group=self.layout.dp_cp_group)
        self.log.add(table)
        count = result.count.clone()
        if self.layout.cp_size > 1:
            dist.all_reduce(count, group=self.layout.cp_group)
        # a step without a supervised token reports 0, not 0 / 0
        report = {LOSS: (table[0, 0], table[0, 1].clamp_min(1e-6))}
        parts = {name: (row[0], row[1]) for name, row in zip(self._objective.names, table[1:])}
        return result.sum, count, {**report, **{name: parts[name] for name in self.reported}}


def train_step_wrapper(train_step: Callable[..., Any]) -> Callable[..., Any]:
    """Around Megatron's train_step, where every rank is between two steps: stages agree on failed samples, the learning rate is set.

    Megatron gives the first update the rate of warm-up step 0; here, as in the built-in engine, an update has the rate of its own number.
    """

    @wraps(train_step)
    def step(
        forward_step_func: Any, data_iterator: Any, model: Any, optimizer: Any, opt_param_scheduler: Any, *more: Any, **named: Any
    ) -> Any:
        arguments = (forward_step_func, data_iterator, model, optimizer, opt_param_scheduler, *more)
        if not isinstance(forward_step_func, ForwardStep):
            return train_step(*arguments, **named)
        forward_step_func.start_step()
        look_ahead(opt_param_scheduler, forward_step_func.recipe.train.global_batch)
        number, chunks = forward_step_func.done + 1, [bare(chunk) for chunk in model]
        with forward_step_func.log.watching(optimizer, chunks, number), forward_step_func.dump.step(number, model):
            result = train_step(*arguments, **named)
        losses, *rest = result
        losses, train = present(losses), forward_step_func.recipe.train
        rate = opt_param_scheduler.get_lr({"max_lr": train.lr, "min_lr": train.min_lr})
        forward_step_func.finish_step(losses, grad_norm=rest[_GRAD_NORM], rate=rate)
        return (losses, *rest)

    return step


def present(losses: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Megatron's averages of a step without those of sources that the step did not meet, which are 0 / 0.

    Waits for the device, once a step, where more than the loss itself is reported.
    """
    further = [name for name in losses if name != LOSS]
    if not further:
        return losses
    absent = torch.stack([losses[name] for name in further]).isnan().tolist()
    return {name: value for name, value in losses.items() if name == LOSS or not absent[further.index(name)]}


def look_ahead(scheduler: Any, samples: int) -> None:
    """Sets every group's learning rate to that of the update about to be made, and leaves the scheduler where it was.

    Args:
        scheduler: Megatron's OptimizerParamScheduler, which counts samples.
        samples: of one step.
    """
    scheduler.num_steps += samples
    for group in scheduler.optimizer.param_groups:
        group["lr"] = scheduler.get_lr(group) * group.get("lr_mult", 1.0)
    scheduler.num_steps -= samples


def _host_groups(layout: ParallelLayout) -> ParallelLayout:
    """The layout with gloo groups for host tensors where failures are agreed on: HCCL takes none. Collective over the world."""
    return replace(
        layout,
        tp_cp_group=_on_gloo(layout.tp_cp_group),
        pp_group=_on_gloo(layout.pp_group),
        dp_cp_group=dist.new_group(backend="gloo", timeout=_timeout()),
    )


def _timeout() -> timedelta:
    """That of Megatron's own groups."""
    return timedelta(minutes=megatron_arguments().distributed_timeout_minutes)


def _on_gloo(group: Any) -> Any:
    everyone: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, tuple(dist.get_process_group_ranks(group)))
    mine = None
    for ranks in sorted(set(everyone)):
        made = dist.new_group(list(ranks), backend="gloo", timeout=_timeout())
        mine = made if dist.get_rank() in ranks else mine
    return mine
