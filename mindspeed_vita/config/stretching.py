"""Other rotary scaling for a checkpoint that was trained without it, or with another one: `--rope-scaling`."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from mindspeed_vita.config.build import build
from mindspeed_vita.config.recipe import ModelConfig, RopeScalingConfig
from mindspeed_vita.config.unique_keys import RepeatedKey, load_yaml, yaml_problem
from mindspeed_vita.config.validate import validate_model

OPTION = "--rope-scaling"


def stretched(model: ModelConfig, text: str) -> ModelConfig:
    """The model with its positions scaled in another way, and max_positions raised to what the scaling reaches.

    Args:
        model: as it was trained.
        text: the keys of model.language.rope_scaling, as a YAML mapping such as "{kind: yarn, factor: 4, original_positions: 32768}",
            or a file with them: LongRoPE has long lists. kind none takes a scaling away.

    Raises:
        ValueError: not such a mapping, an unknown key, a wrong value, or a key that the kind needs is missing.
    """
    content = _read(text)
    scaling = build(RopeScalingConfig, content, OPTION, root=RopeScalingConfig)
    # The defaults would scale nothing, or from a length that the weights may not have been trained on.
    needed = {"none": (), "linear": ("factor",), "ntk": ("factor",)}.get(scaling.kind, ("factor", "original_positions"))
    missing = [name for name in ("kind", *needed) if name not in content]
    if missing:
        raise ValueError(
            f"{OPTION}: found {', '.join(map(str, content)) or 'no keys'}; expected {' and '.join(missing)} as well, such as "
            "{kind: yarn, factor: 4, original_positions: 32768}"
        )
    trained = scaling.original_positions if "original_positions" in content else model.language.max_positions
    reach = math.floor(trained * scaling.factor) if scaling.kind != "none" else 0
    language = dataclasses.replace(model.language, rope_scaling=scaling, max_positions=max(model.language.max_positions, reach))
    wanted = dataclasses.replace(model, language=language)
    try:
        validate_model(wanted)
    except ValueError as error:
        raise ValueError(f"{OPTION}: {error}") from error
    return wanted


def _read(text: str) -> Mapping[str, Any]:
    where, content = OPTION, text
    if not text.lstrip().startswith("{"):
        path = Path(text)
        if not path.is_file():
            raise ValueError(f"{OPTION} {text}: no such file, and no mapping such as {{kind: linear, factor: 4}}")
        where, content = f"{OPTION} {path}", path.read_text(encoding="utf-8")
    try:
        found = load_yaml(content)
    except RepeatedKey as error:
        raise ValueError(f"{where}: {error}") from error
    except yaml.YAMLError as error:
        raise ValueError(f"{where}: not valid YAML: {yaml_problem(error)}") from error
    if not isinstance(found, Mapping):
        raise ValueError(f"{where}: expected a mapping such as {{kind: linear, factor: 4}}, found {type(found).__name__}")
    return found
