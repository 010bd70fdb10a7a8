"""Every branch between the supported megatron-core lines, 0.12.x, 0.16.x and 0.19.x. Nothing else in the package asks for a version.

megatron is imported inside the functions only. patches/manifest.toml names every attribute of other packages that is set here.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import Any, Iterator, Optional, Sequence

import torch
import torch.distributed as dist

SUPPORTED = ((0, 12), (0, 16), (0, 19))


def core_version() -> tuple[int, int]:
    """(major, minor) of the megatron-core that is imported."""
    import megatron.core

    major, minor = megatron.core.__version__.split(".")[:2]
    return int(major), int(minor)


def is_old_core() -> bool:
    """True on the 0.12 line: no vp_stage, no pg_collection, token counts summed over data parallel only."""
    return core_version() < (0, 13)


def check_version() -> None:
    """Refuse a megatron-core outside the tested range.

    Raises:
        ValueError: naming what was found and what to install.
    """
    found = core_version()
    if not SUPPORTED[0] <= found <= SUPPORTED[-1]:  # `vita doctor` notes a line between them that the tests do not run on
        lines = ", ".join(f"{major}.{minor}.x" for major, minor in SUPPORTED)
        hint = "0.16.1 where nothing else pins it; 0.19 needs Python 3.12"
        raise ValueError(f"megatron-core {found[0]}.{found[1]} is not supported; install one of {lines} ({hint})")


def vp_stage_argument(vp_stage: Optional[int] = None) -> dict[str, Any]:
    """`vp_stage=` for the functions and constructors that know it: 0.12 has no such argument."""
    return {} if is_old_core() else {"vp_stage": vp_stage}


def set_virtual_stages(count: int) -> None:
    """How many chunks of the model each rank of the pipeline has; megatron.core chooses its schedule by that."""
    _tell_virtual_stages(*((0, count) if count > 1 else (None, None)))


def _tell_virtual_stages(number: Optional[int], count: Optional[int]) -> None:
    from megatron.core import parallel_state

    # not through its setters, which newer lines announce the end of at each call
    parallel_state._VIRTUAL_PIPELINE_MODEL_PARALLEL_RANK = number
    parallel_state._VIRTUAL_PIPELINE_MODEL_PARALLEL_WORLD_SIZE = count


@contextmanager
def virtual_stage(number: int) -> Iterator[None]:
    """For a while the chunk that is built or described: 0.12 looks it up, newer lines are told by vp_stage."""
    from megatron.core import parallel_state

    before = parallel_state._VIRTUAL_PIPELINE_MODEL_PARALLEL_RANK
    count = parallel_state._VIRTUAL_PIPELINE_MODEL_PARALLEL_WORLD_SIZE
    if before is not None:
        _tell_virtual_stages(number, count)
    try:
        yield
    finally:
        _tell_virtual_stages(before, count)


def mlp_width_argument(width: int) -> dict[str, Any]:
    """`ffn_hidden_size=` for megatron's MLP: newer lines warn where it is left out, 0.12 has no such argument."""
    return {} if is_old_core() else {"ffn_hidden_size": width}


def param_layout_argument(model: torch.nn.Module, settings: Any) -> dict[str, Any]:
    """`full_param_layout=` of core's DistributedDataParallel: from 0.18 on it warns where the argument is left out, older lines lack it.

    The layout is the one that it would compute by itself for the distributed optimizer. With overlap it does: only then are the gradients
    cut into several buckets.
    """
    if core_version() < (0, 18) or settings.overlap_grad_reduce or not settings.use_distributed_optimizer:
        return {}
    from megatron.core import parallel_state
    from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer

    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    ranks = parallel_state.get_data_parallel_world_size(with_context_parallel=True)
    return {"full_param_layout": DistributedOptimizer.compute_full_param_layout(trainable, None, ranks, settings)}


def checkpoint_metadata() -> dict[str, Any]:
    """`metadata=` of sharded_state_dict: one checkpoint key per layer instead of layers stacked under one key, on every line."""
    return {"non_homogeneous_layers": True}


def install_patches() -> None:
    """What the 0.12 line lacks without TransformerEngine. Idempotent; nothing to do on newer lines."""
    if not is_old_core():
        return
    import megatron.core.optimizer.distrib_optimizer as distributed_optimizer

    # DistributedOptimizer.step ends here even without fp8 parameters, and the function raises without TransformerEngine
    distributed_optimizer.quantize_param_shard = lambda *args, **kwargs: None


def destroy_model_parallel() -> None:
    """Take megatron's parallel state down, so that another one can be made in the same process.

    0.12 forgets two lists of ranks; a later, smaller layout would take ranks for members of groups they are not in.
    """
    from megatron.core import parallel_state

    parallel_state.destroy_model_parallel()
    if is_old_core():
        parallel_state._EMBEDDING_GLOBAL_RANKS = None
        parallel_state._POSITION_EMBEDDING_GLOBAL_RANKS = None


def finalize_model_grads(model: Sequence[torch.nn.Module], num_tokens: Optional[torch.Tensor] = None, **arguments: Any) -> None:
    """megatron.core's gradient reduction, with the token count summed over dp x cp on every line.

    0.12 sums `num_tokens` over data parallel only, which at cp 2 doubles every gradient; newer lines sum over dp x cp.
    Without any supervised token the gradients stay zero (core skips the division).
    """
    from megatron.core import parallel_state
    from megatron.core.distributed import finalize_model_grads as core_finalize

    if num_tokens is not None and is_old_core() and parallel_state.get_context_parallel_world_size() > 1:
        dist.all_reduce(num_tokens, group=parallel_state.get_context_parallel_group())
    core_finalize(list(model), num_tokens, **arguments)


def distributed_optimizer(optimizer: torch.optim.Optimizer, config: Any, chunks: Sequence[Any]) -> Any:
    """megatron.core's DistributedOptimizer over parameter groups of our own making.

    core's factory is passed by: on 0.12 it knows a single learning-rate multiplier, drops groups that are empty on a
    rank (then groups change places when a resume changes pp), and builds no optimizer on a rank that trains nothing.

    Args:
        optimizer: torch AdamW over the model's trainable parameters, with the same groups on every rank.
        config: megatron.core OptimizerConfig.
        chunks: the parts of this rank's model, each inside megatron.core's DistributedDataParallel.
    """
    from megatron.core import parallel_state
    from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer

    # the constructor is the same on every line
    sharded = DistributedOptimizer(
        optimizer,
        config,
        None,
        lambda *args, **kwargs: None,
        model_chunks=list(chunks),
        per_model_buffers={number: chunk.buffers for number, chunk in enumerate(chunks)},
        data_parallel_group=parallel_state.get_data_parallel_group(with_context_parallel=True),
        data_parallel_group_gloo=None,
        data_parallel_group_idx=dist.get_rank(parallel_state.get_model_parallel_group()),
        distributed_optimizer_instance_id=0,
    )
    if core_version() >= (0, 19):
        # core has ranks agree at the first step on whether any parameter's norm is kept apart (a router's, say), and leaves out ranks
        # that train nothing, which then hang or crash. None of ours is kept apart.
        from megatron.core.optimizer.optimizer import SEPARATE_GRAD_NORM_GROUPS

        sharded._has_grad_norm_group_cache = dict.fromkeys(SEPARATE_GRAD_NORM_GROUPS, False)
    sharded.tp_group = parallel_state.get_tensor_model_parallel_group()  # 0.16 and newer read it when it skips tp duplicates in the norm
    return sharded


def gradients_in_norm(optimizer: Any) -> list[torch.Tensor]:
    """The gradients that a rank counts in the norm of all: what several ranks hold is counted by one. 0.19 has renamed the method.

    Args:
        optimizer: of megatron.core, not a chain of several.
    """
    newer = getattr(optimizer, "get_grads_for_grad_norm", None)
    return newer() if newer is not None else optimizer.get_main_grads_for_grad_norm()  # type: ignore[no-any-return]
