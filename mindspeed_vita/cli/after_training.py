"""What `vita train` prints at the end: where the results are, and the next command."""

from __future__ import annotations

import shlex
from pathlib import Path

from mindspeed_vita.checkpoint.native import atomic
from mindspeed_vita.config import Recipe
from mindspeed_vita.engine.loss_curve import write_loss_curve
from mindspeed_vita.engine.outcome import TrainResult


def held_out(recipe: Recipe, result: TrainResult) -> list[str]:
    """A line about the held-out losses of a run, where it has some."""
    if not result.held_out:
        return []
    (_, first), (_, last) = result.held_out[0], result.held_out[-1]
    best = ""
    if result.best is not None:
        kept = f": {Path(recipe.checkpoint.directory) / atomic.step_name(result.best)}" if recipe.eval.keep_best else ""
        best = f", lowest {dict(result.held_out)[result.best]:.4f} at step {result.best}{kept}"
    early = f"; stopped early, as {recipe.eval.patience} evaluations in a row found none lower" if result.stopped_early else ""
    return [f"{recipe.name}: held-out loss {first:.4f} -> {last:.4f}{best}{early}"]


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
    merge = "--merge " if recipe.lora.rank else ""
    rows.append(("export it", f"vita convert --from {shown} {merge}--to hf --output {beside}"))
    return [f"  {name:<12} {text}" for name, text in rows]
