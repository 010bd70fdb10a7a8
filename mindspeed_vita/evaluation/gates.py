"""From a measurement to a gate: written where the next stage's checkpoint.init_from looks, and told as an exit status.

Every evaluator of this room uses it. checkpoint/gates.py has the format, and refuses the hand-over.
"""

from __future__ import annotations

from pathlib import Path
from typing import Optional

from mindspeed_vita.checkpoint.gates import Gate, judged_step, write_gate
from mindspeed_vita.checkpoint.native import atomic

__all__ = ["Gate", "judge", "record_gate", "status_of"]


def record_gate(checkpoint: Path, gate: Gate) -> Optional[Path]:
    """Writes a gate into the folder of the checkpoint's run, for the step that was measured. Call it on one process.

    Args:
        checkpoint: the folder that was measured, of choose_step (engine/chosen_step.py): a run trains on, and its newest step is soon
            another one.
        gate: the measured value and its bound.

    Returns:
        The file; None for a Hugging Face folder that belongs to no run.

    Raises:
        OSError: the file cannot be written.
    """
    # a step folder is that step, also where the run that trains meanwhile has pruned it
    step = checkpoint if atomic.is_step(checkpoint) else judged_step(checkpoint)
    return None if step is None else write_gate(step, gate)


def judge(checkpoint: Path, gate: Gate) -> int:
    """Records a gate, says in a line what it found, and gives the exit status. Call it on one process.

    Args:
        checkpoint, gate: as record_gate.

    Raises:
        OSError: the file cannot be written.
    """
    path = record_gate(checkpoint, gate)
    print(gate.describe() + (f" ({path})" if path else "; the export belongs to no run, so nothing is written next to it"))
    return status_of(gate)


def status_of(gate: Gate) -> int:
    """The exit status of a command that measured it: 0 passed, 1 held back."""
    return int(gate.held)
