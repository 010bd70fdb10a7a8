"""Which checkpoint a run continues from, with which settings, and what becomes of newer ones."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Optional

from mindspeed_vita.checkpoint.native import atomic, step_folder
from mindspeed_vita.checkpoint.native.ranks import gather
from mindspeed_vita.config import Recipe
from mindspeed_vita.engine.optimizer import describe_new_length, rate_at

ASIDE = "aside-"
"""In front of the name of a step that is newer than the one a run was told to continue from."""


@dataclass(frozen=True, kw_only=True)
class Resume:
    """What a user asks of a run that is continued."""

    step: str = ""
    """`--resume-from`: a step folder's name, or its number; empty: the newest."""
    with_changes: bool = False
    """`--resume-with-changes`: settings of optimisation may be others than before."""


NEWEST = Resume()
"""The newest checkpoint, with the settings that it was trained with."""


def resume_from(recipe: Recipe, resume: Resume) -> Optional[Path]:
    """The step folder that a run continues from; None where it begins. Collective.

    Raises:
        ValueError: hosts see different folders, there is a checkpoint that the recipe does not want, or none that the user wants.
    """
    directory = Path(recipe.checkpoint.directory)
    steps = atomic.complete_steps(directory)
    newest = steps[-1] if steps else None
    seen = set(gather(newest.name if newest else "none"))
    if len(seen) > 1:
        raise ValueError(
            f"processes see different newest checkpoints in {directory} ({', '.join(sorted(seen))}); "
            f"checkpoint.directory must lie on a file system that all hosts share"
        )
    if newest is not None and not recipe.checkpoint.resume:
        raise ValueError(
            f"checkpoint.resume is false, but {directory} holds {newest.name}; set it to true to continue, "
            f"or choose another checkpoint.directory"
        )
    return newest if not resume.step else _chosen(directory, steps, resume.step)


def _chosen(directory: Path, steps: list[Path], told: str) -> Path:
    name = atomic.step_name(int(told)) if told.isascii() and told.isdigit() else told.rstrip("/").rpartition("/")[2]
    for step in steps:
        if step.name == name:
            return step
    there = f"it has {', '.join(step.name for step in steps)}" if steps else "it has no whole checkpoint"
    raise ValueError(f"--resume-from {told}: {directory} holds no whole {name}; {there}")


def set_aside(folder: Path) -> list[str]:
    """Renames the steps that are newer than the one a run continues from, so that the next start does not take them for its newest.

    Returns:
        their new names.
    """
    names = []
    for step in atomic.complete_steps(folder.parent):
        if atomic.step_of(step) > atomic.step_of(folder):
            aside, number = step.with_name(ASIDE + step.name), 1
            while aside.exists():
                number += 1
                aside = step.with_name(f"{ASIDE}{step.name}.{number}")
            step.rename(aside)
            names.append(aside.name)
    return names


def describe_changes(schedule: Any, recipe: Recipe, folder: Path, *, step: int) -> list[str]:
    """What is said about settings that are others than before, and the learning rates around the seam.

    Args:
        schedule: of this run, by build_schedule.
        recipe: what the run is told now.
        folder: the step that it continues from.
        step: its number.
    """
    saved, train = step_folder.saved_recipe(folder), recipe.train
    before = replace(train, **{key: saved["train"][key] for key in ("steps", "lr", "min_lr", "warmup_fraction")})
    lines = []
    if before.steps != train.steps:
        lines.append(describe_new_length(schedule, train, steps_before=before.steps, step=step))
    changed = step_folder.changed_training(saved, recipe)
    if changed:
        told = ", ".join(f"train.{key} was {there} and is {here} now" for key, (there, here) in changed.items())
        rates = rate_at(schedule, before, before.steps, step), rate_at(schedule, train, train.steps, min(step + 1, train.steps))
        lines.append(f"{told}: the learning rate was {rates[0]:.2e} at step {step} and is {rates[1]:.2e} at step {step + 1}")
    return lines
