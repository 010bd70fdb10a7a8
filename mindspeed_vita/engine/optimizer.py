"""Gradient reduction, AdamW sharded over data parallelism, and the learning-rate schedule."""

from __future__ import annotations

from copy import copy
from dataclasses import dataclass
from typing import Any, Optional

import torch

from mindspeed_vita.choices import Precision
from mindspeed_vita.config import Recipe, TrainConfig
from mindspeed_vita.engine.module_norms import megatron_norms
from mindspeed_vita.parallel.chunks import ModelChunks, chunks_of
from mindspeed_vita.parallel.parameter_groups import parameter_groups
from mindspeed_vita.parallel.weights_in_time import wait_before_reads
from mindspeed_vita.platform import Platform, megatron_compat
from mindspeed_vita.wording import counted


@dataclass(frozen=True, kw_only=True)
class Communication:
    """How gradients and weights travel between data-parallel ranks. The default waits for both, in fp32."""

    grad_reduce: Precision = "fp32"
    """Type in which gradients add up, over micro-batches and over ranks."""
    overlap_grad_reduce: bool = False
    """Reduce each bucket of gradients while the backward pass goes on."""
    overlap_param_gather: bool = False
    """Gather each bucket of weights while the next forward pass goes on."""

    @staticmethod
    def of(recipe: Recipe, platform: Platform) -> Communication:
        """That of a run on a device."""
        told = recipe.parallel.overlap_grad_reduce, recipe.parallel.overlap_param_gather
        reduce, gather = (value == "always" or (value == "auto" and platform.capabilities.accelerator) for value in told)
        wanted = reduce or recipe.parallel.overlap_param_gather == "always"
        return Communication(grad_reduce=recipe.train.grad_reduce, overlap_grad_reduce=wanted, overlap_param_gather=wanted and gather)


BUCKET_SIZE: Optional[int] = None
"""Parameters of a bucket where communication overlaps; None: megatron.core's choice, at least 40 million."""


def wrap_model(model: Any, communication: Communication = Communication()) -> Any:
    """megatron.core's DDP: gradients accumulate and are summed over dp x cp. Each chunk of an interleaved pipeline has its own.

    Args:
        model: of parallel.build.build_model.
        communication: what overlaps, and the type of the sums.
    """
    if isinstance(model, ModelChunks):
        chunks = ModelChunks([wrap_model(chunk, communication) for chunk in model])
        if communication.overlap_grad_reduce:
            for chunk in chunks:  # an interleaved schedule takes a list, whose order is that of its chunks
                chunk.config.no_sync_func = [each.no_sync for each in chunks]
        return chunks
    from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig
    from megatron.core.enums import ModelType

    settings = DistributedDataParallelConfig(
        grad_reduce_in_fp32=communication.grad_reduce == "fp32",
        overlap_grad_reduce=communication.overlap_grad_reduce,
        overlap_param_gather=communication.overlap_param_gather,
        bucket_size=BUCKET_SIZE,
        use_distributed_optimizer=True,
        check_for_nan_in_grad=False,
    )
    wrapped = DistributedDataParallel(model.config, settings, model, **megatron_compat.param_layout_argument(model, settings))
    wrapped.broadcast_params()
    model.model_type = ModelType.encoder_or_decoder  # the schedules ask for it
    if communication.overlap_grad_reduce:
        # the schedules then reduce in the backward pass of the last micro-batch only
        model.config.no_sync_func = wrapped.no_sync
    if communication.overlap_param_gather:
        wait_before_reads(model)
    return wrapped


def gather_weights(wrapped: Any) -> None:
    """Waits until this rank holds the updated weights whole, for whoever reads them outside a forward pass. Collective over dp x cp."""
    for chunk in chunks_of(wrapped):
        if chunk.ddp_config.overlap_param_gather:
            chunk.start_param_sync(force_sync=True)


def build_optimizer(wrapped: Any, recipe: Recipe, platform: Platform) -> Any:
    """megatron.core's DistributedOptimizer around torch's AdamW: fp32 main parameters and moments, sharded over dp x cp."""
    from megatron.core.optimizer import OptimizerConfig

    train = recipe.train
    groups = parameter_groups(wrapped.module, train, recipe.model.vision.num_layers)
    adam = torch.optim.AdamW(
        groups, lr=train.lr, betas=(train.beta1, train.beta2), eps=train.eps, weight_decay=train.weight_decay, fused=_fused(platform)
    )
    bf16 = train.precision == "bf16"
    config = OptimizerConfig(
        optimizer="adam",
        lr=train.lr,
        min_lr=train.min_lr,
        weight_decay=train.weight_decay,
        adam_beta1=train.beta1,
        adam_beta2=train.beta2,
        adam_eps=train.eps,
        # the norm is computed only for a positive limit, and it is worth knowing
        clip_grad=train.clip_grad if train.clip_grad > 0 else float("inf"),
        bf16=bf16,
        params_dtype=torch.bfloat16 if bf16 else torch.float32,
        use_distributed_optimizer=True,
    )
    return megatron_compat.distributed_optimizer(adam, config, chunks_of(wrapped))


def clip_gradients(optimizer: Any, model: Any) -> tuple[float, torch.Tensor]:
    """The first half of a DistributedOptimizer's step: gradients ready and clipped. `step_with_ready_grads` is the other half. Collective.

    Args:
        optimizer: of build_optimizer.
        model: without its DDP wrapper.

    Returns:
        the norm of all gradients before clipping, and that of each of MODULES on the device; the same on every rank.
    """
    overflowed = optimizer.prepare_grads()
    assert not overflowed, "only loss scaling looks for overflows, and there is none"
    norms = megatron_norms(optimizer, chunks_of(model))
    return float(optimizer.clip_grad_norm(optimizer.config.clip_grad)), norms


def build_schedule(optimizer: Any, train: TrainConfig) -> Any:
    """Linear warm-up, then cosine; counted in optimizer steps. Step it once before each update: the first update has lr > 0."""
    from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler

    return OptimizerParamScheduler(
        optimizer,
        init_lr=0.0,
        max_lr=train.lr,
        min_lr=train.min_lr,
        lr_warmup_steps=_warmup(train, train.steps),
        lr_decay_steps=train.steps,
        lr_decay_style="cosine",
        start_wd=train.weight_decay,
        end_wd=train.weight_decay,
        wd_incr_steps=train.steps,
        wd_incr_style="constant",
    )


def describe_new_length(schedule: Any, train: TrainConfig, *, steps_before: int, step: int) -> str:
    """What another train.steps than before does to a run that is resumed, with the learning rates around the seam.

    Args:
        schedule: of this run, by build_schedule.
        train: of this run.
        steps_before: train.steps when the checkpoint was written.
        step: step of the checkpoint.
    """
    change = f"train.steps was {steps_before} and is {train.steps} now"
    if step >= train.steps:
        return f"{change}; the checkpoint is at step {step}, so nothing is left to train"
    rates = rate_at(schedule, train, steps_before, step), rate_at(schedule, train, train.steps, step + 1)
    return (
        f"{change}: warm-up and cosine span {counted(train.steps, 'step')} from here on; "
        f"the learning rate was {rates[0]:.2e} at step {step} and is {rates[1]:.2e} at step {step + 1}"
    )


def _warmup(train: TrainConfig, steps: int) -> int:
    return min(round(train.warmup_fraction * steps), steps - 1)


def rate_at(schedule: Any, train: TrainConfig, steps: int, step: int) -> float:
    """The recipe's learning rate at one step of a schedule that spans so many steps."""
    other = copy(schedule)
    other.lr_warmup_steps, other.lr_decay_steps, other.num_steps = _warmup(train, steps), steps, step
    return float(other.get_lr({"max_lr": train.lr, "min_lr": train.min_lr}))


def _fused(platform: Platform) -> Optional[bool]:
    return True if platform.capabilities.fused_optimizer else None
