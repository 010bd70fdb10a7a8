"""How far a stage is: read from its run's folder, and from the record that the pipeline keeps there."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Optional

from mindspeed_vita.checkpoint import gates
from mindspeed_vita.checkpoint.megatron import rank_files
from mindspeed_vita.checkpoint.native import atomic, step_folder
from mindspeed_vita.files.publish import whole_file
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
    step = newest(stage.run)
    number = 0 if step is None else _number(step)
    record = _read(stage.run)
    same = step is not None and record.get("step") == step.name
    ended = step is not None and (number >= stage.recipe.train.steps or (same and bool(record.get("ended"))))
    done = record.get("done")
    return Progress(step=step, steps=number, ended=ended, done=dict(done) if same and isinstance(done, Mapping) else {})


def newest(run: Path) -> Optional[Path]:
    """The newest whole step of a run, or iteration of MindSpeed-LLM; None where it has not saved.

    Raises:
        ValueError: the file that names the iteration is damaged.
    """
    if rank_files.is_mindspeed(run):
        return rank_files.iteration_of(run)
    return step_folder.latest(run)


def held_back(step: Path) -> list[str]:
    """A line for each gate that holds a step back.

    Raises:
        ValueError: a gate cannot be read.
    """
    return [f"{gate.describe()} ({path})" for path, gate in gates.held_gates(step).items()]


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
        record = {"step": found.step.name, "ended": found.ended, "done": found.done}
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
    if step.name.startswith("iter_"):
        return int(step.name.removeprefix("iter_"))
    return 0 if step.name == "release" else atomic.step_of(step)


def _read(run: Path) -> Mapping[str, object]:
    path = run / RECORD
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return {"step": content["step"], "ended": content["ended"], "done": content["done"]}
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is no record of a pipeline ({error!r}); remove it, and gates are measured again") from error
