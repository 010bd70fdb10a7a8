"""Trainer's checkpoint folders with what our loader needs to go on; the last file written says that a folder is whole."""

from __future__ import annotations

import json
import re
from dataclasses import asdict
from pathlib import Path
from typing import Optional

from mindspeed_vita.checkpoint import lineage
from mindspeed_vita.checkpoint.adapter.peft_files import OURS
from mindspeed_vita.checkpoint.native import step_folder
from mindspeed_vita.checkpoint.native.atomic import complete_steps
from mindspeed_vita.config import Recipe, recipe_to_dict
from mindspeed_vita.files.writing import write_text

_NAME = re.compile(r"checkpoint-(\d+)")
_STATE, _RECIPE = "state.json", "recipe.json"
EXPORT, ADAPTER = "export", "adapter"
"""Folders of a run with its trained weights: all of them, or the adapters alone. They are written at the end."""


def trained(recipe: Recipe) -> Path:
    """Where a run writes what it trained: weights in our Hugging Face layout, or adapters in peft's."""
    return Path(recipe.checkpoint.directory) / (ADAPTER if recipe.lora.rank else EXPORT)


def is_of_step(folder: Path, step: int) -> bool:
    """Whether what a run trained is there, and of this step: a run may end before it is written, and one that goes on has an earlier one.

    Raises:
        ValueError: its record is damaged.
    """
    record = lineage.read(folder)
    return record is not None and record.step == step


def newest(directory: Path) -> Optional[Path]:
    """The newest whole checkpoint of a run, or None.

    Raises:
        ValueError: the folder holds a run of the built-in engine.
    """
    if directory.is_dir() and complete_steps(directory):
        raise ValueError(
            f"checkpoint.directory={directory} holds a run of the built-in engine; choose another one, and continue from its weights "
            f"with checkpoint.init_from={directory}"
        )
    whole = whole_steps(directory)
    return whole[max(whole)] if whole else None


def whole_steps(directory: Path) -> dict[int, Path]:
    """The whole checkpoints of a run by their step."""
    found = {int(match[1]): path for path in directory.glob("checkpoint-*") if (match := _NAME.fullmatch(path.name))}
    return {step: path for step, path in found.items() if (path / _STATE).is_file()}


def write_state(folder: Path, state: step_folder.TrainState, recipe: Recipe, sharing: str) -> None:
    """Marks a checkpoint as whole. Call it when every rank has written its part."""
    write_text(folder / _RECIPE, json.dumps(recipe_to_dict(recipe), indent=1))
    if recipe.lora.rank:  # peft wrote the adapters there; this names their base
        write_text(folder / OURS, json.dumps(recipe_to_dict(recipe), indent=1))
    partial = folder / f".{_STATE}.partial"
    write_text(partial, json.dumps({**asdict(state), "sharing": sharing}))
    partial.replace(folder / _STATE)


def needs_universal(folder: Path, *, sharing: str, ranks: int) -> bool:
    """Whether a checkpoint is in DeepSpeed's parts for another number of processes.

    Args:
        folder: of the checkpoint.
        sharing: how this run shares weights and optimizer. `read_state` refuses a checkpoint with another way.
        ranks: processes of this run.
    """
    layout = step_folder.load_state(folder).layout
    return sharing.startswith("zero") and _sharing(folder) == sharing and layout["dp"] * layout["cp"] != ranks


def _sharing(folder: Path) -> str:
    return str(json.loads((folder / _STATE).read_text(encoding="utf-8"))["sharing"])


def read_state(folder: Path, recipe: Recipe, *, fingerprint: str, sharing: str) -> step_folder.TrainState:
    """The state of a checkpoint that this run can go on from.

    Args:
        folder: of the checkpoint.
        recipe: this run.
        fingerprint: of its data.
        sharing: how it shares weights and optimizer; see run.py.

    Raises:
        ValueError: other sizes, settings, data, or another way to share them.
    """
    step_folder.check_architecture(folder, recipe.model, resume=True)
    step_folder.check_training(folder, recipe, engine="hf")
    state = step_folder.load_state(folder)
    saved = _sharing(folder)
    advice = f"start a run in another checkpoint.directory with checkpoint.init_from={folder.parent / 'export'} (weights only)"
    if saved != sharing:
        raise ValueError(f"{folder} was written with {saved}, this run has {sharing}; use {saved} to resume, or {advice}")
    if state.fingerprint != fingerprint:
        raise ValueError(f"{folder} was written with other data or another packing; restore it to resume, or {advice}")
    return state
