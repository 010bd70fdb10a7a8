"""Whether a run can load what MindSpeed-LLM saved, asked of the files before anything starts."""

from __future__ import annotations

import argparse
import inspect
from pathlib import Path
from typing import Optional

DISTRIBUTED = "torch_dist"
"""The value of --ckpt-format that can be loaded at another tp, pp and dp."""
_COMMON = "common.pt"
"""Of such a checkpoint: what all ranks hold alike."""
_WITHOUT_OPTIMIZER = (
    "was saved with --no-save-optim, so a run cannot continue with its optimizer; add --no-load-optim, which starts the optimizer anew, or "
    "start from the weights alone with --finetune and another --save"
)
_WITHOUT_RANDOM = "was saved with --no-save-rng, so a run cannot continue with its random states; add --no-load-rng"


def check_writer(arguments: argparse.Namespace) -> None:
    """Refuses --ckpt-format torch_dist under a torch that megatron.core's writer does not work with.

    core 0.12.1 calls a function of torch's own, which later asks for one more argument. The run would fail at its first save.

    Raises:
        ValueError: the format is asked for, and cannot be written.
    """
    if arguments.ckpt_format != DISTRIBUTED:
        return
    import torch
    from torch.distributed.checkpoint import filesystem

    if "serialization_format" in inspect.signature(filesystem._write_item).parameters:
        raise ValueError(
            f"--ckpt-format {DISTRIBUTED} (Megatron's default): the writer of megatron.core 0.12.1 does not work with torch "
            f"{torch.__version__}, but with 2.7.1, which MindSpeed-LLM is released for; install that, or use --ckpt-format torch, whose "
            "checkpoints vita convert --optimizer moves to another layout"
        )


def check_saved(
    folder: Path,
    *,
    tp: int,
    pp: int,
    optimizer: bool,
    random_state: bool,
    virtual_stages: int = 1,
    step: Optional[int] = None,
    distributed: bool = False,
) -> list[str]:
    """What Megatron's loader would fail on, each with what to do.

    Args:
        folder: that --save named, with the file that names the latest step.
        tp, pp: sizes that the run is going to have.
        optimizer: the run loads the optimizer and its schedule.
        random_state: the run loads the states of the random generators.
        virtual_stages: chunks of a stage that the run is going to have.
        step: to load; None takes the latest.
        distributed: the run has --ckpt-format torch_dist, or --auto-detect-ckpt-format.
    """
    from mindspeed_vita.checkpoint.megatron import dist_files, rank_files  # bring torch, which looking at flags alone does not need

    iteration = folder if step is None else folder / f"iter_{step:07d}"
    try:
        if dist_files.is_distributed(iteration):
            return _distributed(rank_files.iteration_of(iteration), distributed, (tp, pp), optimizer, random_state)
        saved = rank_files.saved_layout(folder, step)
    except ValueError as error:
        return [str(error)]
    problems = []
    if (saved.tp, saved.pp) != (tp, pp):
        resumes = optimizer and saved.has_optimizer
        use = "continue in DIR (checkpoint.directory; --load and --save)" if resumes else "start from DIR (checkpoint.init_from; --load)"
        problems.append(
            f"{folder} was saved with tp={saved.tp} pp={saved.pp}, this run has tp={tp} pp={pp}, and Megatron's loader cannot cut weights "
            f"anew; use the same sizes, or vita convert --from {folder} --to mindspeed-llm --tp {tp} --pp {pp}"
            f"{' --optimizer' if resumes else ''} --output DIR and {use}"
        )
        return problems
    if saved.virtual_stages != virtual_stages:
        return [
            f"{folder} was saved with {saved.virtual_stages} virtual stages, this run has {virtual_stages}, and Megatron's loader cannot "
            f"deal layers anew; use the same --num-layers-per-virtual-pipeline-stage, or start from the weights: vita convert --from "
            f"{folder} --to native --output DIR and checkpoint.init_from=DIR (--vita-checkpoint-init-from)"
        ]
    if optimizer and not saved.has_optimizer:
        problems.append(f"{folder} {_WITHOUT_OPTIMIZER}")
    if random_state and not saved.has_random_state:
        problems.append(f"{folder} {_WITHOUT_RANDOM}")
    return problems


def _distributed(folder: Path, told: bool, sizes: tuple[int, int], optimizer: bool, random_state: bool) -> list[str]:
    """As check_saved, of a checkpoint of --ckpt-format torch_dist, whose tp and pp may differ."""
    from mindspeed_vita.checkpoint.megatron.pickles import read_pickle

    if not told:
        return [f"{folder} was saved with --ckpt-format {DISTRIBUTED}; give the same, or --auto-detect-ckpt-format"]
    content = read_pickle(folder / _COMMON)
    if optimizer and "opt_param_scheduler" not in content:
        return [f"{folder} {_WITHOUT_OPTIMIZER}"]
    told_then = content.get("args")
    if random_state and getattr(told_then, "no_save_rng", False):
        return [f"{folder} {_WITHOUT_RANDOM}"]
    saved = tuple(getattr(told_then, f"{axis}_model_parallel_size", 1) for axis in ("tensor", "pipeline"))
    if random_state and saved != sizes:
        return [
            f"{folder} was saved with tp={saved[0]} pp={saved[1]}, this run has tp={sizes[0]} pp={sizes[1]}, for which its random states "
            "do not count; add --no-load-rng"
        ]
    return []
