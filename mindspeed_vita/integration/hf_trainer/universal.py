"""A checkpoint of DeepSpeed for another number of processes: DeepSpeed's own universal format, made when it is needed."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

_LATEST, _UNIVERSAL = "latest", "latest_universal"
"""Files of a checkpoint folder that name its parts. DeepSpeed writes the second one at the end of a conversion."""


def make_universal(folder: Path) -> None:
    """Writes a checkpoint's weights and optimizer once more, parameter by parameter, next to the parts of its processes.

    A conversion that is there is kept. One that was interrupted is made anew.

    Args:
        folder: checkpoint-N of a run with DeepSpeed.

    Raises:
        ValueError: DeepSpeed cannot convert it; quotes what it said last.
    """
    if (folder / _UNIVERSAL).is_file():
        return
    tag = (folder / _LATEST).read_text(encoding="utf-8").strip()
    output = folder / f"{tag}_universal"
    shutil.rmtree(output, ignore_errors=True)
    # the state that is injected says which parameters need special treatment; the export has none
    command = [sys.executable, "-m", "deepspeed.checkpoint.ds_to_universal", "--inject_missing_state"]
    command += ["--input_folder", str(folder / tag), "--output_folder", str(output)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode or not (folder / _UNIVERSAL).is_file():
        said = (done.stderr.strip() or done.stdout.strip()).splitlines()[-1:]
        raise ValueError(f"{folder}: DeepSpeed's ds_to_universal ended with {done.returncode}: {' '.join(said)}")


def mend_optimizer(optimizer: Any, own: Sequence[Mapping[str, Any]], rates: Sequence[float]) -> None:
    """Puts right what DeepSpeed 0.19.8 loads wrongly from the universal format under ZeRO-3.

    It gives the first group's settings to all groups. It also gives one step counter to all parameters, and every update of a
    parameter would count it up.

    Args:
        optimizer: the innermost one, after loading.
        own: the settings of each group as they were made.
        rates: the learning rate of each group for the next update.
    """
    for group, settings, rate in zip(optimizer.param_groups, own, rates, strict=True):
        group.update(settings)
        group["lr"] = rate
    for state in optimizer.state.values():
        if isinstance(state.get("step"), torch.Tensor):
            state["step"] = state["step"].clone()
