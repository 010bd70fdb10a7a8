"""Gradient reduction, AdamW sharded over data parallelism, parameter groups and the learning-rate schedule."""

from __future__ import annotations

import re
from typing import Any, Optional

import torch
import torch.distributed as dist

from mindspeed_vita.config import Recipe, TrainConfig
from mindspeed_vita.platform import Platform, megatron_compat

_VISION_LAYER = re.compile(r"vision\.layers\.(\d+)\.")


def learning_rate_multiplier(name: str, train: TrainConfig, num_vision_layers: int) -> float:
    """Multiplier of one parameter: its module's, times the tower's layer decay.

    Args:
        name: full parameter name, e.g. vision.layers.3.ls1.
        train: settings.
        num_vision_layers: layers of the tower; what lies before its first layer counts as layer -1.
    """
    module = name.split(".", 1)[0]
    multiplier = {"vision": train.vision_lr_mult, "projector": train.projector_lr_mult, "language": train.language_lr_mult}[module]
    if module == "vision":
        match = _VISION_LAYER.match(name)
        layer = int(match.group(1)) if match else -1
        multiplier *= train.vision_layer_decay ** (num_vision_layers - 1 - layer)
    return multiplier


def decays(name: str, parameter: torch.Tensor) -> bool:
    """Whether weight decay applies: not to biases, norms and LayerScale."""
    return parameter.dim() > 1 and not name.endswith("bias")


def parameter_groups(model: torch.nn.Module, train: TrainConfig, num_vision_layers: int) -> list[dict[str, Any]]:
    """Groups of trainable parameters that share a learning rate and a weight decay. Collective.

    Every rank gets the same groups in the same order, some of them empty: then the schedule is the same everywhere, and a rank
    without anything to train (stage 1 behind the first pipeline stage) still has an optimizer. The multiplier is part of
    max_lr and min_lr, because only one of the core lines multiplies by itself.

    Raises:
        ValueError: no parameter trains on any rank.
    """
    members: dict[tuple[float, float], list[torch.nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            key = (learning_rate_multiplier(name, train, num_vision_layers), float(decays(name, parameter)))
            members.setdefault(key, []).append(parameter)
    keys: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(keys, sorted(members))
    everywhere = sorted({key for part in keys for key in part}, reverse=True)
    if not everywhere:
        raise ValueError(f"train.modules={list(train.modules)} leaves nothing to train; name at least one module that has weights")
    return [
        {
            "params": members.get((multiplier, decay), []),
            "max_lr": train.lr * multiplier,
            "min_lr": train.min_lr * multiplier,
            "lr_mult": 1.0,
            "wd_mult": decay,
            "is_expert_parallel": False,
            "is_decoupled_lr": False,
        }
        for multiplier, decay in everywhere
    ]


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
