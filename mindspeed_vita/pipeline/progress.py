"""How far a stage is: read from its run's folder, and from the record that the pipeline keeps there."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Optional

from mindspeed_vita.checkpoint import gates, lineage
from mindspeed_vita.checkpoint.megatron import rank_files
from mindspeed_vita.checkpoint.native import atomic, step_folder
from mindspeed_vita.files.publish import whole_file
from mindspeed_vita.integration.hf_trainer import checkpoints as hf_checkpoints
from mindspeed_vita.pipeline.pipeline_file import Stage

RECORD = "pipeline.json"
"""In the run's folder."""
FAILURE = "pipeline_failed.txt"
"""Beside it."""


@dataclass(kw_only=True)
class Progress:
    """What is known of a stage."""

    step: Optional[Path]
    """Newest whole step or iteration; None: the run has not saved."""
    steps: int
    """Its number."""
    ended: bool
    """The run said that it is over: it reached its last step, or eval.patience ended it."""
    done: dict[str, str] = field(default_factory=dict)
    """Gates and commands that ended well on this step, with when."""

    def describe(self, stage: Stage) -> str:
        """For people."""
        if self.step is None:
            return "not begun"
        last = stage.recipe.train.steps
        if not self.ended:
            return f"step {self.steps:,} of {last:,}"
        left = [*stage.settings.gates, *stage.settings.after]
        open_words = [text for text in left if text not in self.done]
        return f"trained, {self.step.name}" + (f"; left: {'; '.join(open_words)}" if open_words else "; done")


def progress(stage: Stage) -> Progress:
    """Looks at a stage's folder.

    Raises:
        ValueError: the record or the folder is damaged.
    """
    step = newest(stage)
    number = 0 if step is None else _number(step)
    record = read_record(stage.run)
    same = step is not None and record.get("step") == step.name
    told_over = same and bool(record.get("ended")) and record.get("steps") == stage.recipe.train.steps  # more steps: it goes on
    ended = step is not None and (number >= stage.recipe.train.steps or told_over)
    if stage.settings.engine == "hf":  # a run may end after its last checkpoint, before it writes what it trained
        ended = ended and hf_checkpoints.is_of_step(stage.weights, number)
    done = record.get("done")
    return Progress(step=step, steps=number, ended=ended, done=dict(done) if same and isinstance(done, Mapping) else {})


def newest(stage: Stage) -> Optional[Path]:
    """The newest whole step of a stage's run, iteration of MindSpeed-LLM or checkpoint of Trainer; None where it has not saved.

    Raises:
        ValueError: the file that names the iteration is damaged.
    """
    run = stage.run
    if stage.settings.engine == "hf":
        return hf_checkpoints.newest(run)
    if rank_files.is_mindspeed(run):
        return rank_files.iteration_of(run)
    return step_folder.latest(run)


def held_back(stage: Stage, step: Path) -> list[str]:
    """A line for each gate that holds back what a stage trained.

    Args:
        stage: which.
        step: its newest one.

    Raises:
        ValueError: a gate cannot be read.
    """
    weights = stage.weights if stage.settings.engine == "hf" else step
    return [f"{gate.describe()} ({path})" for path, gate in gates.held_gates(weights).items()] if weights.is_dir() else []


def other_start(stage: Stage, start: Stage) -> str:
    """What to say of a stage that was trained from other weights than its start has now; empty: nothing, or the start is gone.

    Args:
        stage: with a step.
        start: the stage that it starts from.

    Raises:
        ValueError: a record of where weights come from is damaged.
    """
    if newest(start) is None or not start.weights.is_dir():
        return ""
    parents, now = lineage.of_checkpoint(stage.weights).parents, lineage.of_checkpoint(start.weights)
    if not parents or any(parent.identity == now.identity for parent in parents):
        return ""
    was = f"step {parents[-1].step} of {parents[-1].name}"
    return f"trained from {was}, and {start.settings.name} has step {now.step} now; remove {stage.run} to train it again"


def mark(stage: Stage, found: Progress, name: str, when: str) -> None:
    """Writes down that a gate or a command ended well on the step, or, with an empty name, that the run is over.

    Raises:
        OSError: the record cannot be written.
    """
    assert found.step is not None
    if name:
        found.done[name] = when
    else:
        found.ended = True
    with whole_file(stage.run / RECORD) as temporary:
        record = {"step": found.step.name, "ended": found.ended, "steps": stage.recipe.train.steps, "done": found.done}
        temporary.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def mark_failed(stage: Stage, reason: str) -> None:
    """Writes down why the pipeline ended, for the other nodes.

    Raises:
        OSError: it cannot be written.
    """
    with whole_file(stage.run / FAILURE) as temporary:
        temporary.write_text(reason + "\n", encoding="utf-8")


def failure(stage: Stage, *, since: float) -> str:
    """What mark_failed wrote after a time, in seconds since the epoch; empty: nothing."""
    path = stage.run / FAILURE
    return path.read_text(encoding="utf-8").strip() if path.is_file() and path.stat().st_mtime >= since else ""


def _number(step: Path) -> int:
    for prefix in ("iter_", "checkpoint-"):
        if step.name.startswith(prefix):
            return int(step.name.removeprefix(prefix))
    return 0 if step.name == "release" else atomic.step_of(step)


def read_record(run: Path) -> Mapping[str, object]:
    """The record in a run's folder: "step", "ended", "steps" (what train.steps was) and "done"; empty where there is none.

    Raises:
        ValueError: the record is damaged.
    """
    path = run / RECORD
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return {"step": content["step"], "ended": content["ended"], "steps": content.get("steps"), "done": content["done"]}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is no record of a pipeline ({error!r}); remove it, and gates are measured again") from error
