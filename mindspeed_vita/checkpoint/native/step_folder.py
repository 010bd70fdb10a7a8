"""What a step folder says about itself: the step, the run's state, the recipe it was written with."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Optional

from mindspeed_vita.checkpoint.native import atomic
from mindspeed_vita.config import ModelConfig, Recipe, model_config_from_dict, recipe_to_dict

# keys of the model section that do not change what a weight means
_NOT_ARCHITECTURE = {"preset", "vision.preset", "init_std", "lm_head", "lm_head_chunk", "language.max_positions", "vision.layer_scale_init"}

POSITIONS = ("language.rope_base", "language.rope_scaling.")
"""How positions turn: what a later, longer stage changes."""
# keys of the train section that a resumed run may change: how long it goes on, and what only costs memory or time
_MAY_CHANGE = {"steps", "recompute", "recompute_layers", "offload"}


@dataclass(frozen=True, kw_only=True)
class TrainState:
    """Where a run stands, apart from tensors."""

    step: int
    """Optimizer steps done."""
    packs: int
    """Packs consumed: the loader's whole state."""
    fingerprint: str
    """Of the data set and its packing plan."""
    failed_samples: tuple[int, ...]
    """Samples that could not be decoded; they stay masked."""
    layout: dict[str, int]
    """tp, pp, cp, dp of the run that saved."""


def latest(directory: str | Path) -> Optional[Path]:
    """The newest whole step folder of a run, or None."""
    steps = atomic.complete_steps(Path(directory))
    return steps[-1] if steps else None


def find(path: str | Path) -> Path:
    """The step folder that a run or step folder means.

    Raises:
        ValueError: there is none.
    """
    path = Path(path)
    if (path / atomic.CHECKSUMS).is_file():
        return path
    step = latest(path)
    if step is None:
        what = "holds no whole checkpoint" if path.is_dir() else "does not exist"
        if (path / "config.json").is_file():
            what = "is a Hugging Face folder, not a native one"
        raise ValueError(f"{path} {what}; expected a run folder with step_XXXXXXX folders, or one of those folders itself")
    return step


def weights_identity(folder: Path) -> str:
    """Tells the weights of a step from others, wherever the step lies: a hash of their checksums.

    Raises:
        DamagedCheckpoint: the checksums cannot be read.
    """
    sums = {name: digest for name, digest in atomic.recorded(folder).items() if name.startswith("weights/")}
    return hashlib.sha256(json.dumps(sums, sort_keys=True).encode()).hexdigest()


def load_state(folder: Path) -> TrainState:
    """The state of a step folder.

    Raises:
        ValueError: the folder holds weights only.
        DamagedCheckpoint: the state cannot be read.
    """
    path = folder / "state.json"
    if not path.is_file():
        raise ValueError(
            f"{folder} holds weights only, so it cannot be resumed; name it as checkpoint.init_from of a run in another folder"
        )
    known = {field.name for field in fields(TrainState)}
    try:
        content = json.loads(path.read_text())
        return TrainState(**{**{k: v for k, v in content.items() if k in known}, "failed_samples": tuple(content["failed_samples"])})
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise atomic.damaged(folder, [f"state.json cannot be read ({error!r})"]) from error


def saved_recipe(folder: Path) -> dict[str, Any]:
    """The recipe a step was written with, as nested plain values.

    Raises:
        DamagedCheckpoint: it cannot be read.
    """
    try:
        content = json.loads((folder / "recipe.json").read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise ValueError(f"it holds a JSON {type(content).__name__}, expected an object")
    except ValueError as error:
        raise atomic.damaged(folder, [f"recipe.json cannot be read ({error})"]) from error
    return content


def check_architecture(folder: Path, config: ModelConfig, *, resume: bool = False) -> None:
    """Refuse a checkpoint of another architecture.

    Args:
        folder: step folder.
        config: architecture of this run.
        resume: whether the run goes on; one that only starts from the weights may stretch its positions.

    Raises:
        ValueError: naming every key that differs, with both values.
    """
    saved = model_config_from_dict(saved_recipe(folder)["model"])
    found = differing_keys(saved, config)
    differing = [
        f"model.{key}: {there} there, {here} here" for key, (there, here) in found.items() if resume or not key.startswith(POSITIONS)
    ]
    if differing:
        raise ValueError(f"checkpoint {folder} is of another architecture ({'; '.join(differing)}); use the recipe it was trained with")


def differing_weights(left: ModelConfig, right: ModelConfig) -> str:
    """The keys in which two architectures differ, but for how positions turn, with both values; empty where there are none."""
    found = differing_keys(left, right)
    return "; ".join(f"model.{key}: {there} there, {here} here" for key, (there, here) in found.items() if not key.startswith(POSITIONS))


def differing_keys(left: ModelConfig, right: ModelConfig) -> dict[str, tuple[Any, Any]]:
    """The keys of the model section in which two architectures differ, with both values."""
    first, second = flat(asdict(left)), flat(asdict(right))
    keys = sorted({*first, *second} - _NOT_ARCHITECTURE)
    return {key: (first.get(key), second.get(key)) for key in keys if first.get(key) != second.get(key)}


def check_training(folder: Path, recipe: Recipe) -> None:
    """Refuse to resume under other settings of optimisation: the curve would be neither the old run's nor a new one's.

    Raises:
        ValueError: naming every key that differs, with both values.
    """
    # a key that came later: the run had what is its default
    saved = {**recipe_to_dict(Recipe())["train"], **saved_recipe(folder)["train"]}
    wanted = recipe_to_dict(recipe)["train"]
    keys = sorted(key for key in wanted if key not in _MAY_CHANGE and saved.get(key) != wanted[key])
    if keys:
        differing = "; ".join(f"train.{key}: {saved.get(key)} there, {wanted[key]} here" for key in keys)
        raise ValueError(
            f"{folder} was trained with other settings ({differing}); restore them to resume, or start a run in another "
            f"checkpoint.directory with checkpoint.init_from={folder} (weights only)"
        )


def flat(section: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings by dotted key."""
    found: dict[str, Any] = {}
    for key, value in section.items():
        name = f"{prefix}{key}"
        found.update(flat(value, f"{name}.") if isinstance(value, Mapping) else {name: value})
    return found
