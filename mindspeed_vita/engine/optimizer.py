"""Gradient reduction, AdamW sharded over data parallelism, and the learning-rate schedule."""

from __future__ import annotations

from typing import Any, Optional

import torch

from mindspeed_vita.config import Recipe, TrainConfig
from mindspeed_vita.parallel.parameter_groups import parameter_groups
from mindspeed_vita.platform import Platform, megatron_compat


def wrap_model(model: Any) -> Any:
    """megatron.core's DDP: gradients accumulate and are summed over dp x cp in fp32."""
    from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig
    from megatron.core.enums import ModelType

    settings = DistributedDataParallelConfig(
        grad_reduce_in_fp32=True, overlap_grad_reduce=False, use_distributed_optimizer=True, check_for_nan_in_grad=False
    )
    wrapped = DistributedDataParallel(model.config, settings, model)
    wrapped.broadcast_params()
    model.model_type = ModelType.encoder_or_decoder  # the schedules ask for it
    return wrapped


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
    return megatron_compat.distributed_optimizer(adam, config, wrapped)


def build_schedule(optimizer: Any, train: TrainConfig) -> Any:
    """Linear warm-up, then cosine; counted in optimizer steps. Step it once before each update: the first update has lr > 0."""
    from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler

    warmup = min(round(train.warmup_fraction * train.steps), train.steps - 1)
    return OptimizerParamScheduler(
        optimizer,
        init_lr=0.0,
        max_lr=train.lr,
        min_lr=train.min_lr,
        lr_warmup_steps=warmup,
        lr_decay_steps=train.steps,
        lr_decay_style="cosine",
        start_wd=train.weight_decay,
        end_wd=train.weight_decay,
        wd_incr_steps=train.steps,
        wd_incr_style="constant",
    )


def _fused(platform: Platform) -> Optional[bool]:
    return True if platform.capabilities.fused_optimizer else None
