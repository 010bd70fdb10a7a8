"""Trainer's checkpoint folders with what our loader needs to go on; the last file written says that a folder is whole."""

from __future__ import annotations

import json
import re
from dataclasses import asdict
from pathlib import Path
from typing import Any, Optional

from mindspeed_vita.checkpoint.adapter.peft_files import OURS
from mindspeed_vita.checkpoint.native import step_folder
from mindspeed_vita.checkpoint.native.atomic import complete_steps
from mindspeed_vita.config import Recipe, recipe_to_dict

_NAME = re.compile(r"checkpoint-(\d+)")
_STATE, _RECIPE = "state.json", "recipe.json"


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
    found = {int(match[1]): path for path in directory.glob("checkpoint-*") if (match := _NAME.fullmatch(path.name))}
    whole = {step: path for step, path in found.items() if (path / _STATE).is_file()}
    return whole[max(whole)] if whole else None


def write_state(folder: Path, state: step_folder.TrainState, recipe: Recipe, sharing: str) -> None:
    """Marks a checkpoint as whole. Call it when every rank has written its part."""
    (folder / _RECIPE).write_text(json.dumps(recipe_to_dict(recipe), indent=1), encoding="utf-8")
    if recipe.lora.rank:  # peft wrote the adapters there; this names their base
        (folder / OURS).write_text(json.dumps(recipe_to_dict(recipe), indent=1), encoding="utf-8")
    partial = folder / f".{_STATE}.partial"
    partial.write_text(json.dumps({**asdict(state), "sharing": sharing}), encoding="utf-8")
    partial.replace(folder / _STATE)


def read_state(
    folder: Path, recipe: Recipe, *, fingerprint: str, sharing: str, ranks: int, deepspeed: Optional[dict[str, Any]]
) -> step_folder.TrainState:
    """The state of a checkpoint that this run can go on from.

    Args:
        folder: of the checkpoint.
        recipe: this run.
        fingerprint: of its data.
        sharing: how it shares weights and optimizer; see run.py.
        ranks: its processes.
        deepspeed: its configuration of DeepSpeed.

    Raises:
        ValueError: other sizes, settings, data, or another way to share them.
    """
    step_folder.check_architecture(folder, recipe.model, resume=True)
    step_folder.check_training(folder, recipe, engine="hf")
    state = step_folder.load_state(folder)
    saved = json.loads((folder / _STATE).read_text(encoding="utf-8"))["sharing"]
    advice = f"start a run in another checkpoint.directory with checkpoint.init_from={folder.parent / 'export'} (weights only)"
    if saved != sharing:
        raise ValueError(f"{folder} was written with {saved}, this run has {sharing}; use {saved} to resume, or {advice}")
    if state.fingerprint != fingerprint:
        raise ValueError(f"{folder} was written with other data or another packing; restore it to resume, or {advice}")
    before = state.layout["dp"] * state.layout["cp"]
    universal = deepspeed is not None and deepspeed.get("checkpoint", {}).get("load_universal", False)
    if deepspeed is not None and before != ranks and not universal:
        raise ValueError(
            f"{folder} was written by {before} processes, this run has {ranks}; use {before}, or convert it with DeepSpeed's "
            'ds_to_universal and add "checkpoint": {"load_universal": true} to the file of --deepspeed'
        )
    return state
