"""The checkpoints in a run's folder, whichever engine wrote them, and what one of them says about the run."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Optional

from mindspeed_vita.checkpoint import lineage
from mindspeed_vita.checkpoint.megatron import dist_files, rank_files
from mindspeed_vita.checkpoint.native import atomic, step_folder
from mindspeed_vita.integration.hf_trainer import checkpoints as of_trainer

_ITERATION = re.compile(r"iter_(\d{7,})")


def saved_steps(run: Path) -> dict[int, Path]:
    """Whole checkpoints by their step, ascending: of the built-in engine, of --engine hf, or of MindSpeed-LLM.

    Raises:
        ValueError: the file in which Megatron names its newest checkpoint is damaged.
    """
    found = {atomic.step_of(folder): folder for folder in atomic.complete_steps(run)} or of_trainer.whole_steps(run)
    if not found and (run / rank_files.TRACKER).is_file():
        newest = _number(rank_files.iteration_of(run))
        numbered = {number: path for path in run.glob("iter_*") if (number := _number(path)) is not None}
        # Megatron names a checkpoint once it is whole
        found = {number: path for number, path in numbered.items() if newest is not None and number <= newest}
    return dict(sorted(found.items()))


def _number(folder: Path) -> Optional[int]:
    found = _ITERATION.fullmatch(folder.name)
    return int(found[1]) if found else None


def recipe_of(checkpoint: Path) -> Mapping[str, Any]:
    """The recipe of the run that wrote a checkpoint; empty where --ckpt-format torch_dist keeps it among the weights.

    Raises:
        ValueError: it is damaged.
    """
    if _number(checkpoint) is None:
        return step_folder.saved_recipe(checkpoint)
    return {} if dist_files.is_distributed(checkpoint) else rank_files.saved_recipe(checkpoint) or {}


def lineage_of(checkpoint: Path) -> Optional[lineage.Lineage]:
    """Where the weights of a checkpoint come from; None where torch_dist holds it, or --engine hf has no export of its step.

    Raises:
        ValueError: the record is damaged.
    """
    if atomic.is_step(checkpoint):
        return lineage.of_step(checkpoint)
    if _number(checkpoint) is None:  # --engine hf writes the record with its export, at the end
        written = (lineage.read(checkpoint.parent / name) for name in (of_trainer.EXPORT, of_trainer.ADAPTER))
        return next((record for record in written if record is not None and checkpoint.name.endswith(f"-{record.step}")), None)
    return None if dist_files.is_distributed(checkpoint) else lineage.of_checkpoint(checkpoint)
