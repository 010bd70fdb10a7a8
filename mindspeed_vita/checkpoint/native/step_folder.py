"""What a step folder says about itself: the step, the run's state, the recipe it was written with."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Optional

from mindspeed_vita.addresses import is_address
from mindspeed_vita.checkpoint.native import atomic
from mindspeed_vita.config import ModelConfig, Recipe, model_config_from_dict, recipe_to_dict

# keys of the model section that do not change what a weight means
_NOT_ARCHITECTURE = {"preset", "vision.preset", "init_std", "lm_head", "lm_head_chunk", "language.max_positions", "vision.layer_scale_init"}

POSITIONS = ("language.rope_base", "language.rope_scaling.")
"""How positions turn: what a later, longer stage changes."""
_SECTIONS = {key for key, value in recipe_to_dict(Recipe()).items() if isinstance(value, dict)}
"""Keys of a saved recipe that hold objects."""
# keys of the train section that a resumed run may change: how long it goes on, and what only costs memory or time
_MAY_CHANGE = {"steps", "recompute", "recompute_layers", "offload"}

_ON_REQUEST = {
    *("global_batch", "lr", "min_lr", "warmup_fraction", "vision_lr_mult", "projector_lr_mult", "language_lr_mult", "vision_layer_decay"),
    *("weight_decay", "beta1", "beta2", "eps", "clip_grad", "precision", "grad_reduce"),
}
"""Keys of the train section that a resumed run may change where its user asks for it."""


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
    skipped_steps: tuple[int, ...] = ()
    """Steps that made no update, as their numbers were bad."""
    rollbacks: tuple[int, ...] = ()
    """Bad steps from which the run went back to a checkpoint."""
    recent_numbers: tuple[tuple[float, float], ...] = ()
    """Loss and gradient norm of the last good steps, oldest first, where the run looks for spikes."""


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
        advice = ""
        if (path / "config.json").is_file():
            what, advice = "is a Hugging Face folder, not a native one", f". vita convert --from {path} --to native --output DIR makes one"
        elif (path / "export" / "config.json").is_file():
            advice = f". It is a run of --engine hf, whose weights are in {path / 'export'}"
        raise ValueError(f"{path} {what}; expected a run folder with step_XXXXXXX folders, or one of those folders itself{advice}")
    return step


def check_start(recipe: Recipe) -> None:
    """Refuses a checkpoint.init_from that is no folder. An address in an object store is looked at when the step is fetched.

    Raises:
        ValueError: there is none. The message names the setting.
    """
    start = recipe.checkpoint.init_from
    if start and not is_address(start) and not Path(start).is_dir():
        raise ValueError(
            f"checkpoint.init_from={start}: no such folder; expected the run or the weights that this run starts from. "
            "Train the stage before first, or correct the path"
        )


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
        values = {key: value for key, value in content.items() if key in known}
        for key in ("failed_samples", "skipped_steps", "rollbacks"):
            values[key] = tuple(values.get(key, ()) if key != "failed_samples" else values[key])
        values["recent_numbers"] = tuple((float(loss), float(norm)) for loss, norm in values.get("recent_numbers", ()))
        return TrainState(**values)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise atomic.damaged(folder, [f"state.json cannot be read ({error!r})"]) from error


def saved_recipe(folder: Path) -> dict[str, Any]:
    """The recipe a step was written with, as nested plain values.

    Raises:
        DamagedCheckpoint: it cannot be read.
        OSError: it cannot be read, and the folder is no step.
    """
    try:
        content = json.loads((folder / "recipe.json").read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise ValueError(f"it holds a JSON {type(content).__name__}, expected an object")
        for section in _SECTIONS & content.keys():
            if not isinstance(content[section], dict):
                raise ValueError(f"its {section} is a JSON {type(content[section]).__name__}, expected an object")
    except (ValueError, OSError) as error:
        if isinstance(error, OSError) and not (folder / atomic.CHECKSUMS).is_file():  # no step, or one that a run removes just now
            raise
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


def changed_training(saved: Mapping[str, Any], recipe: Recipe) -> dict[str, tuple[Any, Any]]:
    """The settings of optimisation that differ from a saved recipe, with both values, but not those that any resume may change."""
    # a key that came later: the run had what is its default
    before, wanted = {**recipe_to_dict(Recipe())["train"], **saved["train"]}, recipe_to_dict(recipe)["train"]
    keys = sorted(key for key in wanted if key not in _MAY_CHANGE and before.get(key) != wanted[key])
    return {key: (before.get(key), wanted[key]) for key in keys}


def check_training(folder: Path, recipe: Recipe, *, with_changes: bool = False, engine: str = "builtin") -> None:
    """Refuse to resume under other settings of optimisation: the curve would be neither the old run's nor a new one's.

    Args:
        folder: step folder.
        recipe: what this run was told.
        with_changes: the user wants the settings of _ON_REQUEST to change.
        engine: that continues; only the built-in one can change settings.

    Raises:
        ValueError: naming every key that differs, with both values.
    """
    found = changed_training(saved_recipe(folder), recipe)
    fixed = [key for key in found if key not in _ON_REQUEST]
    if "global_batch" in found and recipe.train.even_steps > 1:
        fixed.append("global_batch")  # the order of packs follows from it, so some would come twice and others never
    keys = sorted(fixed if with_changes else found)
    if not keys:
        return
    differing = "; ".join(f"train.{key}: {found[key][0]} there, {found[key][1]} here" for key in keys)
    advice = "restore them to resume"
    if not fixed and engine == "builtin":
        advice += ", add --resume-with-changes to go on with the new ones"
    elif with_changes and "global_batch" in fixed:
        advice += f" (train.global_batch cannot change with train.even_steps={recipe.train.even_steps})"
    raise ValueError(
        f"{folder} was trained with other settings ({differing}); {advice}, or start a run in another "
        f"checkpoint.directory with checkpoint.init_from={folder} (weights only)"
    )


def flat(section: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings by dotted key."""
    found: dict[str, Any] = {}
    for key, value in section.items():
        name = f"{prefix}{key}"
        found.update(flat(value, f"{name}.") if isinstance(value, Mapping) else {name: value})
    return found
