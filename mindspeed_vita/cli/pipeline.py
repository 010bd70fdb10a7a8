"""`vita pipeline FILE`: stages one after the other, each from the weights of the one before, with gates in between."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mindspeed_vita.pipeline.handoff import Handoff
    from mindspeed_vita.pipeline.pipeline_file import Pipeline, Stage

_EPILOG = """
examples:
  vita pipeline examples/tiny/pipeline.yaml --dry-run
  vita pipeline examples/tiny/pipeline.yaml
  vita pipeline examples/long_vita_14b/pipeline.yaml --from stage3

The same command goes on where it was stopped: finished stages, gates that passed and commands that ended well are not run again.

exit status: 0 all stages are done; 1 a gate holds a stage back; 2 an error that its message says how to mend; 128+n stopped by signal n.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the subcommand."""
    parser.epilog = _EPILOG
    parser.add_argument("file", metavar="FILE", help="pipeline file (YAML); docs/pipeline.md")
    parser.add_argument("--from", dest="first", metavar="STAGE", help="begin with this stage")
    parser.add_argument("--until", dest="last", metavar="STAGE", help="end after this stage")
    parser.add_argument("--dry-run", action="store_true", help="print what each stage takes over, checks and runs, and train nothing")


def run(arguments: argparse.Namespace) -> int:
    """Runs or shows a pipeline."""
    from mindspeed_vita.pipeline.pipeline_file import load_pipeline
    from mindspeed_vita.pipeline.runner import run_pipeline

    pipeline = load_pipeline(Path(arguments.file))
    first = pipeline.stage(arguments.first, "--from") if arguments.first else 0
    last = pipeline.stage(arguments.last, "--until") if arguments.last else len(pipeline.stages) - 1
    if first > last:
        raise ValueError(f"--from {arguments.first} comes after --until {arguments.last}")
    problems = []
    for stage in pipeline.stages[first : last + 1]:
        found = _handoff(pipeline, stage)
        problems += [f"{stage.settings.name}, from {stage.start}: {problem}" for problem in found.problems]
        problems += [f"{stage.settings.name}: {problem}" for problem in _wrong_commands(stage)]
        if found.order_note and not arguments.dry_run:
            print(f"{stage.settings.name}: NOTE: {found.order_note}", flush=True)
    if arguments.dry_run:
        return _show(pipeline, first, last)
    if problems:
        raise ValueError(f"pipeline {arguments.file}: {'; '.join(problems)}")
    return run_pipeline(pipeline, first, last, lambda line: print(line, flush=True))


def _handoff(pipeline: Pipeline, stage: Stage) -> Handoff:
    from mindspeed_vita.pipeline.handoff import handoff

    if not stage.start:
        return handoff(None, stage.recipe)
    before = pipeline.stages[pipeline.stage(stage.start, "start")]
    return handoff(before.recipe, stage.recipe, engines=(before.engine, stage.engine))


def _wrong_commands(stage: Stage) -> list[str]:
    """Gates and commands whose arguments `vita` would refuse, after the training."""
    from mindspeed_vita.cli.main import wrong_words

    commands = [("gate", text, ["eval", *_inserted(shlex.split(text), str(stage.weights))]) for text in stage.settings.gates]
    commands += [("after", text, shlex.split(text)) for text in stage.settings.after]
    told = [(kind, text, wrong_words(words)) for kind, text, words in commands]
    return [f"{kind} {text!r}: {wrong}" for kind, text, wrong in told if wrong]


def _inserted(words: Sequence[str], checkpoint: str) -> list[str]:
    """The words of a gate with the checkpoint after the action."""
    return [*words[:1], checkpoint, *words[1:]]


def _show(pipeline: Pipeline, first: int, last: int) -> int:
    """Prints the plan; 2 where a stage would not start."""
    from mindspeed_vita.cli.check import problems_of
    from mindspeed_vita.pipeline.progress import held_back, other_start, progress
    from mindspeed_vita.pipeline.runner import after_command, gate_command, train_command

    failed = 0
    for stage in pipeline.stages[first : last + 1]:
        found, taken = progress(stage), _handoff(pipeline, stage)
        origin = stage.start or stage.recipe.checkpoint.init_from or "random weights"
        print(f"{stage.settings.name}: {found.describe(stage)}; starts from {origin}")
        for line in taken.lines():
            print(f"  {line}")
        start = pipeline.stages[pipeline.stage(stage.start, "start")] if stage.start else None
        note = other_start(stage, start) if start is not None and found.ended else ""
        if note:
            print(f"  NOTE: {note}")
        # weights that an earlier stage will make are not there yet
        weights = not stage.start or found.step is not None
        problems = [*taken.problems, *_wrong_commands(stage)]
        if not stage.settings.script:  # a script knows its processes; DRY_RUN=1 checks it
            problems += problems_of(stage.recipe, stage.settings.processes, stage.settings.engine, weights=weights)
        problems += held_back(stage, found.step) if found.step is not None else []
        for problem in problems:
            print(f"  PROBLEM: {problem}")
        failed += bool(problems)
        command = shlex.join(train_command(stage, pipeline.folder))
        print(f"  $ {command}" + (f"   (DRY_RUN=1 {command} checks it)" if stage.settings.script else ""))
        name = "checkpoint-{}" if stage.settings.engine == "hf" else "step_{:07d}"
        step = found.step or stage.run / name.format(stage.recipe.train.steps)
        for text in stage.settings.gates:
            print(f"  gate: {shlex.join(gate_command(stage, text, step))}")
        for text in stage.settings.after:
            print(f"  then: {shlex.join(after_command(stage, text))}")
    count = last + 1 - first
    scripts = sum(bool(stage.settings.script) for stage in pipeline.stages[first : last + 1])
    unchecked = f"; {scripts} start by a script, which DRY_RUN=1 checks" if scripts else ""
    print(f"FAIL: {failed} of {count} stages would not start" if failed else f"PASS: {count} stages would run{unchecked}")
    return 2 if failed else 0
