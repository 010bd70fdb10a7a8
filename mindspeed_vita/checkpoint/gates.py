"""Gates: measured values that hold a step's weights back from the next stage. One JSON file for each gate and step of a run.

This file is the format and the refusal. evaluation/gates.py makes gates from measurements; the engine makes that of the held-out loss.
"""

from __future__ import annotations

import json
import re
import sys
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Optional

from mindspeed_vita.checkpoint.native import atomic, step_folder
from mindspeed_vita.files.publish import whole_file

FOLDER = "gates"
"""Folder of the gates, in a run's folder."""
BETTER = ("lower", "higher")
_NAME = re.compile(r"[a-z0-9_]+")


@dataclass(frozen=True, kw_only=True)
class Gate:
    """One measured value and its bound.

    Raises:
        ValueError: a name that is no file name, or an unknown direction.
    """

    name: str
    """Lower-case letters, digits and _: held_out_loss, needle, choice_mmmu."""
    measured: float
    bound: float
    """The worst value that passes."""
    better: str
    """lower | higher: which values are good ones."""
    detail: str = ""
    """What was measured on, for people."""

    def __post_init__(self) -> None:
        numbers = (self.measured, self.bound)
        if not all(map(_is_number, numbers)):
            raise ValueError(f"gate {self.name!r}: measured={self.measured!r}, bound={self.bound!r}; expected numbers")
        if not _NAME.fullmatch(self.name) or self.better not in BETTER:
            raise ValueError(
                f"gate {self.name!r}, better={self.better!r}; expected a name of a-z, 0-9 and _, and one of {', '.join(BETTER)}"
            )

    @property
    def held(self) -> bool:
        """Whether the weights are held back. A value that is no number holds them."""
        return not (self.measured <= self.bound if self.better == "lower" else self.measured >= self.bound)

    def describe(self) -> str:
        """One line for people."""
        allowed = f"at {'most' if self.better == 'lower' else 'least'} {self.bound:g}"
        return f"gate {self.name}: measured {self.measured:.6g}, passes with {allowed}: {'HELD BACK' if self.held else 'passed'}"


def write_gate(step: Path, gate: Gate) -> Path:
    """Writes a gate of a step, in the place of an earlier one of its name; returns the file.

    Args:
        step: `<run>/step_XXXXXXX`, as of judged_step.
        gate: what was measured on it.

    Raises:
        OSError: the file cannot be written.
    """
    path = step.parent / FOLDER / f"{gate.name}.{step.name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as temporary:
        temporary.write_text(json.dumps({**asdict(gate), "held": gate.held}, indent=1) + "\n", encoding="utf-8")
    return path


def gates_of(step: Path) -> dict[Path, Gate]:
    """The gates of a step by their files, sorted by name.

    Raises:
        ValueError: a file is no gate.
    """
    found = sorted((step.parent / FOLDER).glob(f"*.{step.name}.json"))
    return {path: _read(path) for path in found}


def judged_step(checkpoint: Path) -> Optional[Path]:
    """The step that the gates of a checkpoint are about, as `<run>/step_XXXXXXX`, whether that folder is there or not.

    Args:
        checkpoint: native run or step folder, what MindSpeed-LLM saved, whose iterations count as steps, or what a run on transformers'
            Trainer wrote at its end, in that run's folder.

    Returns:
        None for any other Hugging Face or peft folder, which belongs to no run, and for weights without a step.

    Raises:
        ValueError: there is no checkpoint.
    """
    from mindspeed_vita.checkpoint import lineage
    from mindspeed_vita.checkpoint.megatron import rank_files  # imports torch

    if any((checkpoint / name).is_file() for name in ("config.json", "adapter_config.json")):
        record, run = lineage.read(checkpoint), checkpoint.parent
        trained = record is not None and record.made_by == "training" and (run / f"checkpoint-{record.step}").is_dir()
        return run / atomic.step_name(record.step) if trained and record and record.step else None
    if not rank_files.is_mindspeed(checkpoint):
        return step_folder.find(checkpoint)
    found = rank_files.iteration_of(checkpoint)
    number = found.name.removeprefix("iter_")
    return found.parent / atomic.step_name(int(number)) if number.isdecimal() else None


def held_gates(checkpoint: Path) -> dict[Path, Gate]:
    """The gates that hold a checkpoint's step back, by their files.

    Args:
        checkpoint: as judged_step.

    Raises:
        ValueError: there is no checkpoint, or a file is no gate.
    """
    step = judged_step(checkpoint)
    return {path: gate for path, gate in gates_of(step).items() if gate.held} if step else {}


def check_handover(checkpoint: Path) -> None:
    """Refuses a checkpoint whose step one of its gates holds back.

    Args:
        checkpoint: as judged_step.

    Raises:
        ValueError: naming each such gate, what was measured and what to do; or a file is no gate.
    """
    held = held_gates(checkpoint)
    if held:
        lines = "; ".join(f"{gate.describe()} ({path})" for path, gate in held.items())
        raise ValueError(
            f"{judged_step(checkpoint)} is held back: {lines}. Train that stage further, start from another step, measure again with "
            "another bound (`vita eval`), or remove the file to start from it all the same"
        )


def _is_number(value: object) -> bool:
    """Whether a value is a number that a float can hold; an integer of JSON may have hundreds of digits."""
    if isinstance(value, int) and not isinstance(value, bool):
        return abs(value) <= sys.float_info.max
    return isinstance(value, float)


def _read(path: Path) -> Gate:
    names = [field.name for field in fields(Gate)]
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return Gate(**{name: content[name] for name in names if name in content})
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is no gate ({error}); measure again with `vita eval`, or remove it") from error
