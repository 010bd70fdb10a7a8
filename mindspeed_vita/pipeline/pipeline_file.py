"""The file of a pipeline: its stages in order, with their recipes, gates and what runs after each."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Optional

from mindspeed_vita.addresses import is_address
from mindspeed_vita.choices import Engine
from mindspeed_vita.config import Recipe, load_recipe
from mindspeed_vita.config.build import build
from mindspeed_vita.config.kinds import Listed, Section, Size, Text, Texts
from mindspeed_vita.config.load import expanded
from mindspeed_vita.config.unique_keys import read_yaml
from mindspeed_vita.integration.hf_trainer.checkpoints import trained

GATES = ("loss", "needle", "choice")
"""What a gate may measure: the actions of `vita eval`."""
_PART = re.compile(r"step_\d+|iter_\d+|checkpoint-\d+|export|adapter")
"""Folders of weights in the folder of a run."""
_OF_RECIPE = "recipe"
"""The start of a stage whose recipe names its weights."""


@dataclass(frozen=True, kw_only=True)
class StageSettings(Section):
    """One stage, as the file says it."""

    name: Text
    """What messages, --from and --until call it."""
    recipe: Text
    """Recipe file, from the pipeline's folder."""
    settings: Texts = ()
    """Overrides of the recipe, as on the command line: train.steps=100."""
    start: Text = ""
    """Stage whose weights it starts from; empty: the one before. "recipe": what the recipe's checkpoint.init_from says."""
    script: Text = ""
    """Shell script that starts the run and takes overrides as arguments, from the pipeline's folder. Empty: `vita train`."""
    processes: Size = 1
    """Processes of `vita train`. A script decides that itself."""
    engine: Engine = "builtin"
    """Engine of `vita train`; of a script, the one it uses."""
    gates: Texts = ()
    """Each a measurement that must pass before the next stage: the arguments of `vita eval`, without the checkpoint."""
    after: Texts = ()
    """Each a command of `vita` that runs once the gates passed; {run} is the run's folder."""


@dataclass(frozen=True, kw_only=True)
class PipelineSettings(Section):
    """The file."""

    name: Text
    """For messages."""
    stages: Annotated[tuple[StageSettings, ...], Listed()] = ()
    """In the order in which they run."""


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One stage with its recipe."""

    settings: StageSettings
    recipe: Recipe
    """With the overrides, and with the start of the stage."""
    recipe_path: Path
    overrides: tuple[str, ...]
    """All that the run is told besides its recipe."""
    start: str
    """Name of the stage that it starts from; empty: none."""

    @property
    def run(self) -> Path:
        """Folder of the run."""
        return Path(self.recipe.checkpoint.directory)

    @property
    def engine(self) -> Optional[Engine]:
        """What runs the stage; None: a script chooses."""
        return None if self.settings.script and self.settings.engine == "builtin" else self.settings.engine

    @property
    def weights(self) -> Path:
        """What gates measure and the next stage starts from: the run itself, or what transformers' Trainer writes at its end."""
        return trained(self.recipe) if self.settings.engine == "hf" else self.run


@dataclass(frozen=True, kw_only=True)
class Pipeline:
    """A pipeline with its recipes read."""

    name: str
    folder: Path
    """Folder of the file."""
    stages: tuple[Stage, ...]

    def stage(self, name: str, where: str) -> int:
        """The number of a stage.

        Raises:
            ValueError: there is none of that name.
        """
        names = [stage.settings.name for stage in self.stages]
        if name not in names:
            raise ValueError(f"{where} {name!r}: no such stage; expected one of {', '.join(names)}")
        return names.index(name)


def load_pipeline(path: Path) -> Pipeline:
    """Reads a pipeline and all its recipes.

    Args:
        path: YAML file; ${VAR} and ${VAR:-default} expand from the environment.

    Raises:
        ValueError: the file or one of its recipes cannot be read, or the stages do not follow from one another.
    """
    content = read_yaml(path, "pipeline")
    if not isinstance(content, dict):
        raise ValueError(f"pipeline {path}: expected a mapping with name and stages, found {type(content).__name__}")
    values, unset = expanded(content)
    settings = build(PipelineSettings, values, f"pipeline {path}", root=PipelineSettings, known=unset)
    names = [stage.name for stage in settings.stages]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if _OF_RECIPE in names:
        raise ValueError(f"pipeline {path}: a stage has the name {_OF_RECIPE!r}, which `start` has a meaning for; rename it")
    if not names or repeated:
        raise ValueError(f"pipeline {path}: {'stages have the same name: ' + ', '.join(repeated) if repeated else 'it has no stages'}")
    stages: list[Stage] = []
    for stage in settings.stages:
        stages.append(_open(stage, stages, path))
    _check_folders(stages, path)
    return Pipeline(name=settings.name, folder=path.parent, stages=tuple(stages))


def _open(settings: StageSettings, before: list[Stage], path: Path) -> Stage:
    where = f"pipeline {path}, stage {settings.name}"
    overrides, start = tuple(settings.settings), ""
    if settings.start != _OF_RECIPE and (before or settings.start):
        known = {stage.settings.name: stage for stage in before}
        start = settings.start or before[-1].settings.name
        if start not in known:
            raise ValueError(f"{where}: start={start!r} is no earlier stage; expected {', '.join([*known, _OF_RECIPE])}")
        if any(word.startswith("checkpoint.init_from=") for word in overrides):
            raise ValueError(f"{where}: it starts from {start}, and settings has a checkpoint.init_from; leave one out (start: recipe)")
        overrides = (*overrides, f"checkpoint.init_from={known[start].weights}")
    recipe_path = path.parent / settings.recipe
    try:
        recipe = load_recipe(recipe_path, overrides)
        for gate in settings.gates:
            check_gate(gate)
        for command in settings.after:
            shlex.split(command)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
    if settings.script and not (path.parent / settings.script).is_file():
        raise ValueError(f"{where}: script {path.parent / settings.script}: no such file")
    if settings.script and settings.processes != 1:
        raise ValueError(f"{where}: processes={settings.processes} is of `vita train`; a script chooses its own (NPROC_PER_NODE)")
    return Stage(settings=settings, recipe=recipe, recipe_path=recipe_path, overrides=overrides, start=start)


def check_gate(text: str) -> list[str]:
    """The words of a gate.

    Raises:
        ValueError: they measure nothing that holds weights back.
    """
    words = shlex.split(text)
    if not words or words[0] not in GATES:
        raise ValueError(f"gate {text!r}: expected {', '.join(GATES)} and their arguments, as after `vita eval`")
    bound = "--at-most" if words[0] == "loss" else "--pass"
    if not any(word == bound or word.startswith(f"{bound}=") for word in words):
        raise ValueError(f"gate {text!r} has no bound; add {bound}")
    return words


def _check_folders(stages: list[Stage], path: Path) -> None:
    seen: dict[Path, int] = {}
    for number, stage in enumerate(stages):
        other = seen.setdefault(stage.run.resolve(), number)
        if other != number:
            both = f"{stages[other].settings.name} and {stage.settings.name}"
            raise ValueError(f"pipeline {path}: {both} write to one folder, {stage.run}; set checkpoint.directory")
    for number, stage in enumerate(stages):
        origin = stage.recipe.checkpoint.init_from
        if stage.start or not origin or is_address(origin):
            continue
        place = Path(origin).resolve()
        later = seen.get(place.parent if _PART.fullmatch(place.name) else place, -1)
        if later >= number:
            whose = "itself" if later == number else f"{stages[later].settings.name}, which comes later"
            raise ValueError(
                f"pipeline {path}, stage {stage.settings.name}: checkpoint.init_from={origin} is of {whose}; "
                "name weights that are there before, or change the order"
            )
