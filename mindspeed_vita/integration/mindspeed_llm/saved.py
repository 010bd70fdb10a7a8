"""Whether a run can load what MindSpeed-LLM saved, asked of the files before anything starts."""

from __future__ import annotations

from pathlib import Path
from typing import Optional


def check_saved(
    folder: Path, *, tp: int, pp: int, optimizer: bool, random_state: bool, virtual_stages: int = 1, step: Optional[int] = None
) -> list[str]:
    """What Megatron's loader would fail on, each with what to do.

    Args:
        folder: that --save named, with the file that names the latest step.
        tp, pp: sizes that the run is going to have.
        optimizer: the run loads the optimizer and its schedule.
        random_state: the run loads the states of the random generators.
        virtual_stages: chunks of a stage that the run is going to have.
        step: to load; None takes the latest.
    """
    from mindspeed_vita.checkpoint.megatron import rank_files  # brings torch, which looking at flags alone does not need

    try:
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
        problems.append(
            f"{folder} was saved with --no-save-optim, so a run cannot continue with its optimizer; add --no-load-optim, which starts the "
            "optimizer anew, or start from the weights alone with --finetune and another --save"
        )
    if random_state and not saved.has_random_state:
        problems.append(f"{folder} was saved with --no-save-rng, so a run cannot continue with its random states; add --no-load-rng")
    return problems
