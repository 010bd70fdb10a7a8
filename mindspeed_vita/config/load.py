"""From YAML and dotted overrides to a Recipe: presets underneath, unknown keys refused, environment variables expanded."""

from __future__ import annotations

import dataclasses
import importlib
import os
import re
import sys
import types
import typing
from pathlib import Path
from typing import Any, Mapping, Optional, TypeVar

import yaml

from mindspeed_vita.config.aliases import hint
from mindspeed_vita.config.languages import RELEASED, family_defaults
from mindspeed_vita.config.presets import MODELS, STAGES, TOWERS
from mindspeed_vita.config.recipe import ModelConfig, Recipe
from mindspeed_vita.config.unique_keys import RepeatedKey, load_yaml

_VARIABLE = re.compile(r"\$\{(\w+)(?::-([^}]*))?\}")
_NUMBER = re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+")
_T = TypeVar("_T")


def load_recipe(path: str | Path, overrides: typing.Sequence[str] = ()) -> Recipe:
    """Reads a recipe.

    Later wins: field defaults, the decoder family's, the stage's settings, the model preset, the file, the overrides.

    Args:
        path: a YAML file with the nesting of Recipe. ${VAR} and ${VAR:-default} expand from the environment.
        overrides: "section.key=value" strings; values are YAML.

    Raises:
        ValueError: the file is missing or not a mapping, or a key is unknown or has a value of the wrong type.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"recipe {path}: no such file")
    try:
        content = load_yaml(path.read_text(encoding="utf-8")) or {}
    except RepeatedKey as error:
        raise ValueError(f"recipe {path}: {error}") from error
    except yaml.YAMLError as error:
        raise ValueError(f"recipe {path}: not valid YAML: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"recipe {path}: expected a mapping of sections, found {type(content).__name__}")
    for override in overrides:
        _apply_override(content, override)
    return recipe_from_dict(content, where=str(path), folder=path.parent)


def recipe_from_dict(content: Mapping[str, Any], where: str = "recipe", folder: Optional[Path] = None) -> Recipe:
    """Builds a Recipe from nested dicts; see load_recipe for the order of defaults.

    Args:
        content: the sections.
        where: file, for messages.
        folder: folder of that file, where plugins are looked for first; None: on Python's path alone.
    """
    import_plugins(_convert(tuple[str, ...], content.get("plugins") or (), where, "plugins"), f"{where}: plugins", folder)
    model = content.get("model") or {}
    named = model.get("preset", ModelConfig.preset) if isinstance(model, Mapping) else ModelConfig.preset
    preset = _convert(str, named, where, "model.preset")
    if preset not in MODELS:
        raise ValueError(f"{where}: model.preset={preset!r}; expected one of {sorted(MODELS)}")
    merged = family_defaults(_family(preset, model, where))
    stage = _convert(Optional[int], content.get("stage"), where, "stage")
    if stage is not None:
        if stage not in STAGES:
            raise ValueError(f"{where}: stage={stage!r}; expected one of {sorted(STAGES)}")
        merged = _merge(merged, STAGES[stage])
    merged = _merge(merged, {"model": _with_tower(MODELS[preset], model, where)})
    return _build(Recipe, _merge(merged, content), where, "")


def _family(preset: str, model: Any, where: str) -> str:
    """The decoder family that the model's section names, else its preset's."""
    section = model.get("language") if isinstance(model, Mapping) else None
    named = section.get("family") if isinstance(section, Mapping) else None
    return _convert(str, named or MODELS[preset]["language"].get("family", RELEASED), where, "model.language.family")


def _with_tower(preset: Mapping[str, Any], model: Any, where: str) -> Mapping[str, Any]:
    """The model's preset with its tower replaced by the one that model.vision.preset names."""
    section = model.get("vision") if isinstance(model, Mapping) else None
    name = section.get("preset") if isinstance(section, Mapping) else None
    if not name:
        return preset
    if name not in TOWERS:
        raise ValueError(f"{where}: model.vision.preset={name!r}; expected one of {', '.join(TOWERS)}")
    return {**preset, "vision": TOWERS[name]}


def import_plugins(names: typing.Sequence[str], where: str, folder: Optional[Path] = None) -> None:
    """Imports the modules that register decoders, towers, projectors or formats. One that lies in the folder is taken from there.

    The folder stays on Python's path: a plugin may import its neighbours, and processes that are started later inherit the path.

    Args:
        names: of the modules.
        where: where they are named, for the message.
        folder: folder of the recipe that names them; None: they are looked for on Python's path alone.

    Raises:
        ValueError: one cannot be imported, or another module of its name is loaded.
    """
    for name in names:
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
    return _build(ModelConfig, content, "model section", "model.")


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


def _build(cls: type[_T], content: Any, where: str, prefix: str) -> _T:
    if not isinstance(content, Mapping):
        raise ValueError(f"{where}: {prefix.rstrip('.')} must be a section, found {content!r}")
    hints = typing.get_type_hints(cls)
    fields = {item.name for item in dataclasses.fields(cls)}  # type: ignore[arg-type]
    values = {}
    for key, value in content.items():
        if key not in fields:
            raise ValueError(f"{where}: unknown key {prefix}{key}{hint(str(key), prefix, fields, Recipe)}")
        values[key] = _convert(hints[key], value, where, f"{prefix}{key}")
    return cls(**values)


def _convert(hint: Any, value: Any, where: str, name: str) -> Any:
    if dataclasses.is_dataclass(hint):
        return _build(hint, {} if value is None else value, where, f"{name}.")  # type: ignore[arg-type]
    if isinstance(value, str):
        value = expand_variables(value, where, name)
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        if value is None:
            return None
        hint = next(item for item in typing.get_args(hint) if item is not type(None))
    if typing.get_origin(hint) is tuple:
        items = value.replace(",", " ").split() if isinstance(value, str) else value
        if not isinstance(items, (list, tuple)):
            raise ValueError(f"{where}: {name}={value!r}; expected a list")
        return tuple(_convert(typing.get_args(hint)[0], item, where, name) for item in items)
    return _convert_scalar(hint, value, where, name)


def _convert_scalar(hint: Any, value: Any, where: str, name: str) -> Any:
    if hint is float:
        # YAML 1.1 reads 1e-3 as text, because it has no dot
        if isinstance(value, str) and _NUMBER.fullmatch(value):
            return float(value)
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            return float(value)
    elif hint is int:
        if isinstance(value, str) and re.fullmatch(r"[-+]?\d+", value):
            return int(value)
        if isinstance(value, int) and not isinstance(value, bool):
            return value
        if isinstance(value, float) and value.is_integer():
            return int(value)
    elif hint is bool:
        if isinstance(value, bool):
            return value
        if isinstance(value, str) and value.lower() in ("true", "false"):
            return value.lower() == "true"
    elif hint is str:
        if isinstance(value, (str, int)) and not isinstance(value, bool):
            return str(value)
        if value is None:
            return ""
    raise ValueError(f"{where}: {name}={value!r}; expected {_type_name(hint)}, found {type(value).__name__}")


def _type_name(hint: Any) -> str:
    return {int: "a whole number", float: "a number", bool: "true or false", str: "text"}.get(hint, str(hint))


def expand_variables(text: str, where: str, name: str) -> str:
    """${VAR} and ${VAR:-default} from the environment.

    Args:
        text: what may hold them.
        where: file, for the message.
        name: key, for the message.

    Raises:
        ValueError: a variable without default is not set.
    """

    def replace(match: re.Match[str]) -> str:
        value: Optional[str] = os.environ.get(match.group(1), match.group(2))
        if value is None:
            raise ValueError(f"{where}: {name}={text!r} needs the environment variable {match.group(1)}; set it or override {name}")
        return value

    return _VARIABLE.sub(replace, text)
