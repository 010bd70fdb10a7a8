"""Runs what is left of a pipeline: trains, measures the gates, and hands over."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Iterator, Optional

from mindspeed_vita.engine.stopping import SAVED, SIGNALS
from mindspeed_vita.pipeline.pipeline_file import Pipeline, Stage, check_gate
from mindspeed_vita.pipeline.progress import Progress, failure, held_back, mark, mark_failed, newest, other_start, progress

HELD = 1
"""Exit status of a pipeline whose gate holds a stage back."""
_POLL = 5.0
"""Seconds between two looks of a node that waits for the first one."""
_LONGEST = 24 * 3600.0
"""Seconds that it waits at most."""
Say = Callable[[str], None]


class StageFailed(ValueError):
    """A command of a stage did not end well."""


def train_command(stage: Stage, folder: Path) -> list[str]:
    """What starts a stage's run, from the project's own folder or the current one.

    Args:
        stage: which.
        folder: of the pipeline's file.
    """
    settings = stage.settings
    if settings.script:
        return ["bash", str(folder / settings.script), *stage.overrides]
    engine = [] if settings.engine == "builtin" else ["--engine", settings.engine]
    return _vita(["train", *engine, str(stage.recipe_path), *stage.overrides], settings.processes)


def gate_command(stage: Stage, text: str, step: Path) -> list[str]:
    """What measures a gate. It asks as many processes as its own tp, pp and cp need.

    Args:
        stage: which.
        text: the gate.
        step: folder of the step that is measured.
    """
    action, *words = check_gate(text)
    processes = 1
    for name in ("--tp", "--pp", "--cp"):
        processes *= int(_value(words, name) or 1)
    if action == "needle" and _value(words, "--output") is None:
        words += ["--output", str(stage.run / "gates" / f"{action}.{step.name}")]
    if action == "loss" and stage.settings.engine == "hf" and _value(words, "--recipe") is None:
        words += ["--recipe", str(step / "recipe.json")]  # an export does not say how the run packs its samples
    return _vita(["eval", action, str(stage.weights), *words], processes)


def after_command(stage: Stage, text: str) -> list[str]:
    """A command of `vita` that follows a stage."""
    return _vita([word.replace("{run}", str(stage.run)) for word in shlex.split(text)], 1)


def run_pipeline(pipeline: Pipeline, first: int, last: int, say: Say) -> int:
    """Runs the stages from `first` to `last`. What is done is not done again.

    Args:
        pipeline: which.
        first: number of the first stage.
        last: number of the last stage.
        say: told a line at a time.

    Returns:
        0: all stages are done. HELD: a gate holds a stage back. SAVED: a training was told to stop, and saved. 128 + n: stopped by
        signal n.

    Raises:
        StageFailed: a command did not end well.
        ValueError: a stage's start is missing or held back, or a record is damaged.
    """
    for stage in pipeline.stages[first : last + 1]:
        name = f"{pipeline.name}, {stage.settings.name}"
        start = next((other for other in pipeline.stages if other.settings.name == stage.start), None)
        found = progress(stage)
        if start is not None and found.step is None and (newest(start) is None or not start.weights.is_dir()):
            advice = f"run that stage first (--from {stage.start})"
            raise ValueError(f"{name}: {start.weights}, which it starts from, holds no checkpoint; {advice}")
        note = other_start(stage, start) if start is not None and found.ended else ""
        if note:
            say(f"{name}: NOTE: {note}")
        status = _train(pipeline, stage, found, name, say)
        if status:
            return status
        status = _follow(stage, name, say) if _node() == 0 else _wait(stage, name, say)
        if status:
            return status
        say(f"{name}: done")
    return 0


def _train(pipeline: Pipeline, stage: Stage, found: Progress, name: str, say: Say) -> int:
    """Runs the training until it is over; 0, or the status that the pipeline ends with."""
    judged_again = stage.recipe.eval.gate and found.step is not None and held_back(stage, found.step)
    if found.ended and not judged_again:  # `vita train` judges a finished run in seconds
        say(f"{name}: trained before, {found.step}")
        return 0
    say(f"{name}: {found.describe(stage)}; training")
    status = _call(train_command(stage, pipeline.folder), say)
    if status > 128 or status == SAVED:
        return status
    ended = progress(stage)
    held = held_back(stage, ended.step) if ended.step is not None else []
    if held and status == 1:
        return _hold(name, held, say)
    if status or ended.step is None:
        raise _failed(stage, f"{name}: training ended with status {status}")
    if _node() == 0:
        mark(stage, ended, "", _now())
    return 0


def _follow(stage: Stage, name: str, say: Say) -> int:
    """Measures the gates, and then runs the commands."""
    found = progress(stage)
    assert found.step is not None
    held: list[str] = []
    for text in stage.settings.gates:
        if text in found.done:
            continue
        status = _call(gate_command(stage, text, found.step), say)
        if status > 128:
            return status
        if status == 1:  # the others are measured too: all that is wrong is told at once
            continue
        if status:
            raise _failed(stage, f"{name}: the gate {text!r} could not be measured (status {status})")
        mark(stage, found, text, _now())
    held = held_back(stage, found.step)
    missing = [text for text in stage.settings.gates if text not in found.done]
    if held or missing:
        return _hold(name, held or [f"the gate {text!r} did not pass" for text in missing], say)
    for text in stage.settings.after:
        if text in found.done:
            continue
        status = _call(after_command(stage, text), say)
        if status > 128:
            return status
        if status:
            raise _failed(stage, f"{name}: `vita {text}` ended with status {status}")
        mark(stage, found, text, _now())
    return 0


def _failed(stage: Stage, reason: str) -> StageFailed:
    """The error; the other nodes, which wait for this one, find the reason in the record."""
    if _node() == 0 and stage.run.is_dir():
        mark_failed(stage, reason)
    return StageFailed(f"{reason}; mend what its last lines say, and run the same command again")


def _wait(stage: Stage, name: str, say: Say) -> int:
    """What a node other than the first does while that one measures the gates.

    Raises:
        StageFailed: node 0 met an error, or was silent for too long.
    """
    wanted, began = {*stage.settings.gates, *stage.settings.after}, time.time()
    if wanted:
        say(f"{name}: waiting for node 0 to measure the gates")
    while not wanted <= (found := progress(stage)).done.keys():
        held = held_back(stage, found.step) if found.step is not None else []
        if held:
            return _hold(name, held, say)
        reason = failure(stage, since=began)
        if reason:
            raise StageFailed(f"on node 0: {reason}")
        if time.time() - began > _LONGEST:
            raise StageFailed(f"{name}: node 0 did not finish the gates in {_LONGEST / 3600:g} hours; look at its log")
        time.sleep(_POLL)
    return 0


def _node() -> int:
    return int(os.environ.get("NODE_RANK", "0"))


def _hold(name: str, held: Sequence[str], say: Say) -> int:
    say(f"{name}: HELD BACK: {'; '.join(held)}. Train further (a larger train.steps), or write another bound")
    return HELD


def _vita(words: Sequence[str], processes: int) -> list[str]:
    start = [sys.executable]
    if processes > 1:
        start += ["-m", "mindspeed_vita.cli.torchrun", "--standalone", "--nproc_per_node", str(processes)]
    return [*start, "-m", "mindspeed_vita.cli.main", *words]


def _value(words: Sequence[str], name: str) -> Optional[str]:
    """The value of an option among the words."""
    for number, word in enumerate(words):
        if word == name and number + 1 < len(words):
            return words[number + 1]
        if word.startswith(f"{name}="):
            return word.partition("=")[2]
    return None


def _call(command: Sequence[str], say: Say) -> int:
    """Runs a command in the foreground; a stop signal of ours ends it too. Its status, or 128 + n for signal n."""
    say(f"$ {shlex.join(command)}")
    child = subprocess.Popen(command)
    with _passing_on(child) as passed:
        status = child.wait()
    if passed and status != SAVED:
        return 128 + passed[-1]
    return 128 - status if status < 0 else status


@contextmanager
def _passing_on(child: subprocess.Popen[bytes]) -> Iterator[list[int]]:
    """Sends stop signals on to a child, which saves and ends; what was received, in order."""
    received: list[int] = []

    def pass_on(number: int, frame: Optional[FrameType]) -> None:
        received.append(number)
        if number != signal.SIGINT:  # the terminal sends that to the whole group
            child.send_signal(number)

    before = {number: signal.signal(number, pass_on) for number in SIGNALS}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
