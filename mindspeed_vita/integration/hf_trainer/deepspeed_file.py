"""The file that --deepspeed names: what it says, what is refused, and what the recipe decides in it."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Optional

from mindspeed_vita.config import Recipe
from mindspeed_vita.wording import counted

_BUILTIN = Path(__file__).with_name("deepspeed")
_ZERO = "zero_optimization"
_GATHER = "stage3_gather_16bit_weights_on_model_save"
_KINDS = {"optimizer": "optimizer", "param": "weights"}
"""What a file may keep outside of the device: offload_optimizer and offload_param."""
_PLACES = {"cpu": "in host memory", "nvme": "on NVMe"}
"""Where, by the device of these sections."""
_LEAST_STAGE = {"optimizer": 1, "param": 3}
"""From which stage on. DeepSpeed ignores the section below it."""


def deepspeed_settings(named: str) -> Optional[dict[str, Any]]:
    """The DeepSpeed configuration that --deepspeed names; None for "".

    Args:
        named: zero1, zero2 or zero3, or a JSON file.

    Raises:
        ValueError: no such file, no JSON, settings that contradict each other, or a section that the recipe decides.
    """
    if not named:
        return None
    path = _BUILTIN / f"{named}.json" if named in ("zero1", "zero2", "zero3") else Path(named)
    if not path.is_file():
        raise ValueError(f"--deepspeed {named}: expected zero1, zero2, zero3 or a JSON file; no such file")
    try:
        content = json.loads(path.read_bytes(), object_pairs_hook=_each_once)
    except ValueError as error:
        raise ValueError(f"--deepspeed {path}: no JSON ({error})") from error
    if not isinstance(content, dict) or not isinstance(content.get(_ZERO), dict):
        raise ValueError(f"--deepspeed {path}: expected an object with a section {_ZERO}")
    taken = sorted({"optimizer", "scheduler"} & set(content))
    if taken:
        raise ValueError(
            f"--deepspeed {path} has the section {', '.join(taken)}; leave it out: the recipe's train section sets the optimizer, with a "
            "learning rate for each module, and the schedule"
        )
    problems = _problems(content)
    if problems:
        raise ValueError(f"--deepspeed {path}: {'; '.join(problems)}")
    content["zero_allow_untested_optimizer"] = True
    # accelerate then puts DeepSpeed's Adam in the place of torch's AdamW, with the same groups
    content.setdefault("zero_force_ds_cpu_optimizer", offloads(content, "optimizer") and not lacking_compiler())
    if zero_stage(content) == 3:
        content[_ZERO][_GATHER] = True
    return content


def decided_by_recipe(settings: Mapping[str, Any], recipe: Recipe, processes: int) -> dict[str, Any]:
    """The configuration with what the recipe decides in it: the sizes of a step, the precision and the largest norm of the gradients.

    DeepSpeed would take its own defaults for what a file leaves out, such as a largest norm of 1.

    Args:
        settings: of deepspeed_settings.
        recipe: the run.
        processes: of the run.

    Raises:
        ValueError: the file says something else than the recipe. Equal values and "auto" are accepted.
    """
    train, half = recipe.train, recipe.train.precision == "bf16"
    packs = train.global_batch * recipe.parallel.cp // processes
    share = f"train.global_batch={train.global_batch} on {counted(processes, 'process', 'processes')}"
    decided: dict[tuple[str, ...], tuple[Any, str]] = {
        # every process of a context-parallel group counts as a data-parallel one: it works on a part of the pack
        ("train_micro_batch_size_per_gpu",): (1, "a process computes one pack at a time"),
        ("gradient_accumulation_steps",): (packs, share),
        ("train_batch_size",): (packs * processes, share),
        ("gradient_clipping",): (train.clip_grad, f"train.clip_grad={train.clip_grad:g}"),
        ("bf16", "enabled"): (half, f"train.precision={train.precision}"),
        ("fp16", "enabled"): (False, f"train.precision={train.precision}"),
    }
    found = json.loads(json.dumps(settings))
    problems = []
    for (*section, key), (value, why) in decided.items():
        place = found.setdefault(section[0], {}) if section else found
        told = place.get(key, "auto")
        if told not in ("auto", value):
            problems.append(f"{'.'.join((*section, key))} is {told!r}, and {value!r} follows from the recipe ({why})")
        place[key] = value
    if problems:
        raise ValueError(f"--deepspeed: {'; '.join(problems)}; set these keys to \"auto\" or leave them out of the file")
    return found


def lacking_compiler() -> list[str]:
    """The programs that compile DeepSpeed's Adam and are not here."""
    return [name for name in (os.environ.get("CXX", "c++"), "ninja") if shutil.which(name) is None]


def host_adam(settings: Optional[Mapping[str, Any]]) -> str:
    """Whose AdamW updates optimizer state in host memory: DeepSpeed's where a compiler is and its file does not refuse it, else torch's.

    Empty where the optimizer is on the device.
    """
    if settings is None or not offloads(settings, "optimizer"):
        return ""
    return "DeepSpeed's AdamW" if settings["zero_force_ds_cpu_optimizer"] else "torch's AdamW"


def offloads(settings: Optional[Mapping[str, Any]], kind: str) -> bool:
    """Whether DeepSpeed keeps a kind of state (optimizer or param) outside of the device."""
    return _device(settings, kind) != "none"


def _device(settings: Optional[Mapping[str, Any]], kind: str) -> str:
    section = (settings or {}).get(_ZERO, {}).get(f"offload_{kind}") or {}
    return str(section.get("device", "none"))


def hosted(settings: Mapping[str, Any]) -> str:
    """What is kept outside of the device, and where, for people; empty: nothing."""
    found = [f"{name} {_PLACES[_device(settings, kind)]}" for kind, name in _KINDS.items() if offloads(settings, kind)]
    return " and ".join(found)


def zero_stage(settings: Optional[Mapping[str, Any]]) -> int:
    """ZeRO stage of a configuration; 0 without one."""
    return int(settings[_ZERO].get("stage", 0)) if settings else 0


def _problems(content: Mapping[str, Any]) -> list[str]:
    """Why a run with the file would fail, or would do something else than the file says."""
    zero, found = content[_ZERO], []
    stage = zero.get("stage", 0)
    if isinstance(stage, bool) or stage not in (0, 1, 2, 3):
        return [f"{_ZERO}.stage is {stage!r}; expected 0, 1, 2 or 3"]
    for section in ("bf16", "fp16", "checkpoint"):
        if not isinstance(content.get(section, {}), dict):
            found.append(f"{section} is {content[section]!r}; expected an object")
    for kind, least in _LEAST_STAGE.items():
        section = zero.get(f"offload_{kind}")
        if section is None:
            continue
        device = section.get("device", "none") if isinstance(section, dict) else None
        if device not in ("none", *_PLACES):
            found.append(f'{_ZERO}.offload_{kind} is {section!r}; expected an object with "device": "none", "cpu" or "nvme"')
        elif device != "none" and stage < least:
            found.append(f"{_ZERO}.offload_{kind} needs stage {least}{' or more' if least < 3 else ''}, and stage is {stage}")
    if not isinstance(content.get("zero_force_ds_cpu_optimizer", True), bool):
        found.append(f"zero_force_ds_cpu_optimizer is {content['zero_force_ds_cpu_optimizer']!r}; expected true or false")
    if stage == 3 and zero.get(_GATHER, True) not in (True, "auto"):
        found.append(f"{_ZERO}.{_GATHER} is {zero[_GATHER]!r}; leave it out: the export at the end of the run gathers the weights")
    parallel = content.get("tensor_parallel")
    if isinstance(parallel, dict) and parallel.get("autotp_size", 0) not in (0, 1):
        found.append(f"tensor_parallel.autotp_size is {parallel['autotp_size']!r}; leave it out: the model is whole on every rank")
    return found


def _each_once(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON, whose keys may stand there once."""
    keys = [key for key, _ in pairs]
    twice = sorted({key for key in keys if keys.count(key) > 1})
    if twice:
        raise ValueError(f"the key {twice[0]!r} stands there twice; keep one")
    return dict(pairs)
