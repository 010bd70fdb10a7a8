"""What `vita train` prints at the end: where the results are, and the next command."""

from __future__ import annotations

import shlex
from pathlib import Path

from mindspeed_vita.config import Recipe
from mindspeed_vita.engine.loss_curve import write_loss_curve


def results(recipe: Recipe) -> list[str]:
    """Lines about the files of a finished run, and the commands that use its checkpoint. Draws the loss curve."""
    directory = Path(recipe.checkpoint.directory)
    shown, beside = shlex.quote(str(directory)), shlex.quote(f"{directory}_hf")
    rows = []
    curve = write_loss_curve(directory)
    if curve is not None:
        rows.append(("loss curve", str(curve)))
    if (directory / "metrics.jsonl").is_file():
        rows.append(("metrics", str(directory / "metrics.jsonl")))
    if (directory / "tensorboard").is_dir():
        rows.append(("TensorBoard", f"tensorboard --logdir {shlex.quote(str(directory / 'tensorboard'))}"))
    if (directory / "quarantine.jsonl").is_file():
        rows.append(("left out", f"{directory / 'quarantine.jsonl'} (samples that could not be used, with the reason)"))
    if recipe.stage is not None and recipe.stage < 4:
        rows.append(("next stage", f"starts from here with checkpoint.init_from={shown}"))
    rows.append(("ask it", f'vita generate {shown} --prompt "Describe the picture." --image photo.jpg'))
    rows.append(("export it", f"vita convert --from {shown} --to hf --output {beside}"))
    return [f"  {name:<12} {text}" for name, text in rows]
