"""peft's folders: adapter_config.json, adapter_model.safetensors, and vita_adapter.json with what only we ask for. Needs no peft."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Optional

from mindspeed_vita.checkpoint.adapter.layers import PEFT_PREFIX, check_fit, names_and_shapes, renamed
from mindspeed_vita.checkpoint.hf.processor import read_json
from mindspeed_vita.config import LORA_TARGETS, LoraConfig, Recipe, recipe_to_dict
from mindspeed_vita.files.safetensors_file import SafetensorsFile, write_tensors
from mindspeed_vita.files.tensors import Made, Spec, Tensors
from mindspeed_vita.files.writing import write_json

CONFIG, WEIGHTS, OURS = "adapter_config.json", "adapter_model.safetensors", "vita_adapter.json"
_REFUSED = {
    "use_dora": "DoRA; peft's own code serves it, on an export",
    "use_qalora": "QALoRA; peft's own code serves it, on an export",
    "modules_to_save": "whole modules next to the adapters; train without modules_to_save",
    "rank_pattern": "different ranks; train with one rank",
    "alpha_pattern": "different alphas; train with one alpha",
    "layers_to_transform": "adapters in some layers only; train with all layers",
    "fan_in_fan_out": "matrices that are stored transposed",
    "lora_bias": "biases of adapters; train with lora_bias=False",
    "trainable_token_indices": "trained rows of the embedding table; train without them",
    "target_parameters": "adapters of parameters outside linear layers; train without target_parameters",
    "layer_replication": "replicated layers; train without layer_replication",
    "alora_invocation_tokens": "activated LoRA; peft's own code serves it, on an export",
    "arrow_config": "Arrow's routing; peft's own code serves it, on an export",
}
"""Keys of peft's configuration that change what an adapter computes, and what they bring."""
_CHANGE_THE_BASE = ("pissa", "olora", "corda", "loftq", "lora")
"""First words of peft's ways to begin which take something out of the base's weights; "lora" is that of lora_ga."""


def is_peft(folder: Path) -> bool:
    """Whether a folder holds what peft saves."""
    return (folder / CONFIG).is_file()


def peft_settings(lora: LoraConfig) -> dict[str, Any]:
    """The arguments of peft.LoraConfig for the recipe's adapters over an export."""
    return {
        "task_type": "CAUSAL_LM",
        "r": lora.rank,
        "lora_alpha": int(lora.alpha) if lora.alpha == int(lora.alpha) else lora.alpha,
        "lora_dropout": lora.dropout,
        "use_rslora": lora.rslora,
        "target_modules": [name for part in LORA_TARGETS for name in lora.of(part)],
        "bias": "none",
    }


def read_settings(folder: Path) -> LoraConfig:
    """The settings in peft's configuration; the layers are those that the file of weights names.

    Raises:
        ValueError: it is no LoRA, or one that the built-in engines do not compute, or a rank, alpha or dropout is missing or is none.
    """
    config = read_json(folder / CONFIG)
    if config.get("peft_type") != "LORA":
        raise ValueError(f"{folder}: adapter_config.json says peft_type={config.get('peft_type')!r}; expected LORA")
    _check_numbers(folder, config)
    found = [f"{key}={config[key]} ({what})" for key, what in _REFUSED.items() if config.get(key)]
    start = config.get("init_lora_weights")
    if isinstance(start, str) and start.lower().partition("_")[0] in _CHANGE_THE_BASE:
        advice = "save it in peft with path_initial_model_for_weight_conversion"
        found.append(f"init_lora_weights={start} (it changed the base's weights; {advice})")
    if config.get("bias", "none") != "none":
        found.append(f"bias={config['bias']} (trained biases; train with bias=none)")
    if found:
        raise ValueError(f"{folder}: the adapter has {'; '.join(found)}, which only peft's own code computes")
    modules = {name.removeprefix(PEFT_PREFIX).rpartition(".lora_")[0] for name in _weights(folder).entries}
    targets = {
        part: tuple(name for name in names if any(_is_of(module, part, name) for module in modules)) for part, names in LORA_TARGETS.items()
    }
    parts = tuple(part for part, names in targets.items() if names)
    wanted = config.get("target_modules")
    beyond = sorted(module for module in modules if isinstance(wanted, list) and not any(_ends_with(module, name) for name in wanted))
    if beyond:  # peft would leave these matrices out
        raise ValueError(f"{folder}: {WEIGHTS} has adapters of {beyond[0]}, which target_modules of {CONFIG} leaves out; save it again")
    if not parts:
        expected = f"{PEFT_PREFIX}model.layers.0.self_attn.q_proj.lora_A.weight"
        raise ValueError(f"{folder}: {WEIGHTS} names no layer of a Long-VITA; expected names such as {expected}")
    return LoraConfig(
        rank=int(config["r"]),
        alpha=float(config["lora_alpha"]),
        dropout=float(config.get("lora_dropout") or 0.0),
        rslora=bool(config.get("use_rslora")),
        parts=parts,  # type: ignore[arg-type]
        targets=tuple(name for part in parts for name in targets[part]),
    )


def read_peft(folder: Path, model: Any, lora: LoraConfig) -> Tensors:
    """The matrices under native names, fp32, each read when it is asked for.

    Raises:
        ValueError: they are not of this architecture, or not of the rank that the configuration names.
    """
    file = _weights(folder)
    held = Made({name: Spec(entry.dtype, entry.shape) for name, entry in file.entries.items()}, file.tensor)
    known = {there: here for here, (there, _) in names_and_shapes(model, lora).items()}
    missing, unexpected = sorted(known.keys() - held.specs().keys()), sorted(held.specs().keys() - known.keys())
    if missing or unexpected:
        parts = [f"{len(names)} {what} such as {names[0]}" for what, names in (("missing", missing), ("unexpected", unexpected)) if names]
        raise ValueError(f"{folder}: {WEIGHTS} does not fit the base's architecture: {'; '.join(parts)}")
    matrices = renamed(held, {here: there for there, here in known.items()})
    check_fit(matrices, model, lora, f"{folder}: {WEIGHTS} does not fit the base with r={lora.rank}, as {CONFIG} says")
    return matrices


def write_peft(folder: Path, tensors: Tensors, recipe: Recipe, *, base_export: str = "") -> None:
    """Writes a folder that peft loads over an export of the base.

    Args:
        folder: an empty folder.
        tensors: native names.
        recipe: of the run that trained them.
        base_export: folder of the exported base, which peft's Auto classes then find; empty: peft is told by its caller.
    """
    names = names_and_shapes(recipe.model, recipe.lora)
    renames = {there: here for here, (there, _) in names.items()}
    stored = renamed(tensors, renames)
    write_tensors(folder / WEIGHTS, [(name, stored[name].contiguous()) for name in stored], {"format": "pt"})
    config = {"peft_type": "LORA", "base_model_name_or_path": base_export or None, "inference_mode": True, **peft_settings(recipe.lora)}
    write_json(folder / CONFIG, config)
    write_json(folder / OURS, recipe_to_dict(recipe))


def recipe_beside(folder: Path) -> Optional[Mapping[str, Any]]:
    """The recipe in vita_adapter.json; None where peft wrote the folder.

    Raises:
        ValueError: the file cannot be read.
    """
    path = folder / OURS
    if not path.is_file():
        return None
    try:
        return read_json(path)
    except ValueError as error:
        advice = "convert the adapter again, or remove the file and name the base with --base"
        raise ValueError(f"{error}; {advice}") from error


def base_of(folder: Path) -> str:
    """The base that peft's configuration names."""
    return str(read_json(folder / CONFIG).get("base_model_name_or_path") or "")


def _check_numbers(folder: Path, config: Mapping[str, Any]) -> None:
    """Refuses a rank, alpha or dropout that no adapter has."""
    rank: Any = config.get("r")
    alpha: Any = config.get("lora_alpha")
    dropout: Any = config.get("lora_dropout") or 0.0
    problems = []
    if not _is_number(rank) or rank != int(rank) or rank < 1:
        problems.append(f"r is {rank!r}, expected a whole number of at least 1")
    if not _is_number(alpha) or alpha <= 0:
        problems.append(f"lora_alpha is {alpha!r}, expected a positive number")
    if not _is_number(dropout) or not 0 <= dropout < 1:
        problems.append(f"lora_dropout is {dropout!r}, expected a number from 0 to less than 1")
    if problems:
        raise ValueError(f"{folder / CONFIG}: {'; '.join(problems)}; save the adapter again with peft's save_pretrained")


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def _weights(folder: Path) -> SafetensorsFile:
    if not (folder / WEIGHTS).is_file():
        raise ValueError(f"{folder} holds no {WEIGHTS}; save the adapter with safe_serialization=True")
    return SafetensorsFile(folder / WEIGHTS)


def _is_of(module: str, part: str, target: str) -> bool:
    inside = {"vision": "model.vision_model.", "projector": "model.vision_projection.", "language": "model.layers."}[part]
    return module.startswith(inside) and _ends_with(module, target)


def _ends_with(module: str, target: Any) -> bool:
    """Whether a module is one of a target, as peft matches a list of them."""
    return f".{module}".endswith(f".{target}")
