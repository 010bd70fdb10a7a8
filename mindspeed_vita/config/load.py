"""From YAML and dotted overrides to a Recipe: presets underneath, unknown keys refused, environment variables expanded."""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import os
import re
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Optional

import yaml

from mindspeed_vita.config.build import build
from mindspeed_vita.config.kinds import read_list, read_text, read_whole
from mindspeed_vita.config.languages import RELEASED, family_defaults, language_names
from mindspeed_vita.config.presets import MODELS, STAGES, TOWERS
from mindspeed_vita.config.recipe import ModelConfig, Recipe
from mindspeed_vita.config.unique_keys import load_yaml, read_yaml

_STEP = re.compile(r"step_\d+|iter_\d+|checkpoint-\d+")
"""Folders of checkpoints in the folder of a run."""
_VARIABLE = re.compile(r"\$\{(\w+)(?::-([^}]*))?\}")


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Reads a recipe.

    Later wins: field defaults, the decoder family's, the stage's settings, the model preset, the file, the overrides.

    Args:
        path: a YAML file with the nesting of Recipe. ${VAR} and ${VAR:-default} expand from the environment.
        overrides: "section.key=value" strings; values are YAML.

    Raises:
        ValueError: the file is missing or not a mapping, or keys are unknown or have wrong values. One message lists all of those.
    """
    path = Path(path)
    content = read_yaml(path, "recipe") or {}
    if not isinstance(content, dict):
        raise ValueError(f"recipe {path}: expected a mapping of sections, found {type(content).__name__}")
    for override in overrides:
        _apply_override(content, override)
    return _recipe(content, str(path), path.parent, [override.partition("=")[0] for override in overrides])


def recipe_from_dict(content: Mapping[str, Any], where: str = "recipe") -> Recipe:
    """Builds a Recipe from nested dicts; see load_recipe for the order of defaults. Plugins are looked for on Python's path alone.

    Args:
        content: the sections.
        where: file, for messages.

    Raises:
        ValueError: as load_recipe.
    """
    return _recipe(content, where, None, ())


def recipe_of_checkpoint(content: Mapping[str, Any], folder: Path) -> Recipe:
    """Builds the Recipe that a checkpoint holds. Its maker need not be trusted: no variable expands, and no code in the folder runs.

    Args:
        content: the sections.
        folder: of the checkpoint.

    Raises:
        ValueError: as load_recipe, or a plugin lies in the checkpoint.
    """
    _import_named(content, lambda names: import_plugins(names, f"{folder}: plugins", checkpoint=folder))
    return build(Recipe, _merge(_defaults(content), content), str(folder), root=Recipe, known={}, overridden=())


def _recipe(content: Mapping[str, Any], where: str, folder: Optional[Path], overridden: Collection[str]) -> Recipe:
    content, unset = expanded(content)
    if "plugins" not in unset:
        _import_named(content, lambda names: import_plugins(names, f"{where}: plugins", folder))
    merged = _merge(_defaults(content), content)
    return build(Recipe, merged, where, root=Recipe, known=unset, overridden=overridden)


def _import_named(content: Mapping[str, Any], imported: Callable[[Sequence[str]], None]) -> None:
    """Imports the plugins that a recipe names; what is no list of names is refused afterwards."""
    if isinstance(content.get("plugins"), (str, list)):
        names = [read_text(name) for name in read_list(content["plugins"])]
        imported([name for name in names if isinstance(name, str)])


def _defaults(content: Mapping[str, Any]) -> dict[str, Any]:
    """What the decoder's family, the stage and the model's preset say. A name that is none says nothing here, and is refused afterwards."""
    model = _section(content, "model")
    preset = MODELS.get(_name(model.get("preset", ModelConfig.preset)), {})
    tower = TOWERS.get(_name(_section(model, "vision").get("preset")))
    family = _name(_section(model, "language").get("family") or _section(preset, "language").get("family", RELEASED))
    stage = read_whole(content.get("stage"))
    merged = family_defaults(family) if family in language_names() else {}
    merged = _merge(merged, STAGES.get(stage, {}) if isinstance(stage, int) else {})
    return _merge(merged, {"model": preset if tower is None else {**preset, "vision": tower}})


def _section(content: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    section = content.get(name)
    return section if isinstance(section, Mapping) else {}


def _name(value: Any) -> str:
    text = read_text(value)
    return text if isinstance(text, str) else ""


def import_plugins(names: Sequence[str], where: str, folder: Optional[Path] = None, checkpoint: Optional[Path] = None) -> None:
    """Imports the modules that register decoders, towers, projectors or formats. One that lies in the folder is taken from there.

    The folder stays on Python's path: a plugin may import its neighbours, and processes that are started later inherit the path.

    Args:
        names: of the modules.
        where: where they are named, for the message.
        folder: folder of the recipe that names them; None: they are looked for on Python's path alone.
        checkpoint: that names them. Its maker need not be trusted, so none is imported from there.

    Raises:
        ValueError: one cannot be imported, another module of its name is loaded, or it lies in the checkpoint.
    """
    for name in names:
        if not all(part.isidentifier() for part in name.split(".")):
            raise ValueError(f"{where}: {name!r} cannot be imported: it is no name of a module; expected one such as my_towers")
        if checkpoint is not None:
            _refuse_from(checkpoint, name, where)
        beside = _beside(name, folder)
        if beside is not None and str(beside.parent) not in sys.path:
            sys.path.insert(0, str(beside.parent))
            importlib.invalidate_caches()
        top = name.partition(".")[0]
        try:
            importlib.import_module(name)
        except ImportError as error:
            place = f"put it into {folder}, next to the recipe, or its" if folder is not None else "put its"
            own = getattr(error, "name", None) in (None, name, top)
            advice = f"{place} folder on PYTHONPATH" if own else "the plugin was found; install what it imports"
            raise ValueError(f"{where}: {name!r} cannot be imported ({error}); {advice}") from error
        loaded = Path(getattr(sys.modules[top], "__file__", None) or "").resolve()
        if beside is not None and beside not in (loaded, loaded.parent):
            raise ValueError(f"{where}: {name!r} lies at {beside}, but {loaded} has the same name and is loaded; rename yours")


def _refuse_from(checkpoint: Path, name: str, where: str) -> None:
    """Refuses a module that lies in the folder of a checkpoint's run. One that is loaded was asked for elsewhere."""
    named = (checkpoint, checkpoint.resolve())  # a link or "." has another name than the step
    roots = {(folder.parent if _STEP.fullmatch(folder.name) else folder).resolve() for folder in named}
    parts = name.split(".")
    for number in range(len(parts)):  # a package runs before what is in it
        package = ".".join(parts[: number + 1])
        if package in sys.modules:
            continue
        inside = next((place for place in _places(package) if roots & {place, *place.parents}), None)
        if inside is not None:
            raise ValueError(
                f"{where}: {name!r} lies at {inside}, in the folder of the checkpoint, whose code is not run; "
                "if you trust it, copy it to a folder of your own on PYTHONPATH"
            )


def _places(module: str) -> Iterator[Path]:
    """The files or folders that an import of a module would take; none where there is no such module."""
    try:
        spec = importlib.util.find_spec(module)
    except ImportError:  # the import says it better
        return
    if spec is not None:
        yield from (Path(place).resolve() for place in (spec.origin, *(spec.submodule_search_locations or ())) if place)


def _beside(name: str, folder: Optional[Path]) -> Optional[Path]:
    """The plugin's file or package in a folder, if it is there."""
    if folder is None:
        return None
    top = folder.resolve() / name.partition(".")[0]
    return next((path for path in (top.with_suffix(".py"), top) if path.is_file() or (path / "__init__.py").is_file()), None)


def recipe_to_dict(recipe: Recipe) -> dict[str, Any]:
    """The recipe as nested plain values; recipe_from_dict gives it back."""
    return _plain(dataclasses.asdict(recipe))


def model_config_from_dict(content: Mapping[str, Any]) -> ModelConfig:
    """The model section of a saved recipe."""
    return build(ModelConfig, content, "model section", prefix="model.", root=Recipe, known={})


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value


def _merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """over on top of base; a section left empty in YAML (None) keeps the base."""
    merged = dict(base)
    for key, value in over.items():
        if isinstance(base.get(key), Mapping):
            if value is None:
                continue
            if isinstance(value, Mapping):
                value = _merge(base[key], value)
        merged[key] = value
    return merged


def _apply_override(content: dict[str, Any], override: str) -> None:
    name, separator, text = override.partition("=")
    if not separator or not name:
        raise ValueError(f"override {override!r}: expected section.key=value")
    section = content
    *parents, leaf = name.split(".")
    for parent in parents:
        if section.get(parent) is None:
            section[parent] = {}
        section = section[parent]
        if not isinstance(section, dict):
            raise ValueError(f"override {override!r}: {parent} is a value, not a section")
    try:
        section[leaf] = load_yaml(text) if text else ""
    except yaml.YAMLError as error:
        raise ValueError(f"override {override!r}: {text!r} is not a YAML value") from error


def expanded(content: Mapping[str, Any], prefix: str = "") -> tuple[dict[str, Any], dict[str, str]]:
    """Nested values with their variables expanded, and by key what is wrong where a variable is not set.

    Args:
        content: sections; ${VAR} and ${VAR:-default} expand from the environment.
        prefix: what the names of the keys begin with, with a dot at the end.
    """
    problems: dict[str, str] = {}

    def expand(value: Any, name: str) -> Any:
        if isinstance(value, Mapping):
            section, below = expanded(value, f"{name}.")
            problems.update(below)
            return section
        if isinstance(value, (list, tuple)):
            return [expand(item, name) for item in value]
        if not isinstance(value, str):
            return value
        text, unset = _substituted(value)
        if unset:
            problems[name] = _needs(name, value, unset)
        return text

    return {key: expand(value, f"{prefix}{key}") for key, value in content.items()}, problems


def expand_variables(text: str, where: str, name: str) -> str:
    """${VAR} and ${VAR:-default} from the environment.

    Args:
        text: what may hold them.
        where: file, for the message.
        name: key, for the message.

    Raises:
        ValueError: a variable without default is not set.
    """
    expanded, unset = _substituted(text)
    if unset:
        raise ValueError(f"{where}: {_needs(name, text, unset)}")
    return expanded


def _substituted(text: str) -> tuple[str, list[str]]:
    """The text with the values of its variables, and the names of those that have none."""
    unset: list[str] = []

    def replace(match: re.Match[str]) -> str:
        value: Optional[str] = os.environ.get(match.group(1), match.group(2))
        if value is None:
            unset.append(match.group(1))
        return value or ""

    return _VARIABLE.sub(replace, text), unset


def _needs(name: str, text: str, unset: Sequence[str]) -> str:
    variables = f"the environment variable{'s' if len(unset) > 1 else ''} {', '.join(dict.fromkeys(unset))}"
    return f"{name}={text!r} needs {variables}; set {'them' if len(unset) > 1 else 'it'} or override {name}"
