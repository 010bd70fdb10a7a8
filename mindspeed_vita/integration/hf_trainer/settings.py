"""From a recipe to Trainer's arguments, and the configuration of DeepSpeed."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Optional

from mindspeed_vita.config import Recipe
from mindspeed_vita.parallel.layout import ParallelLayout
from mindspeed_vita.platform import Platform

_BUILTIN = Path(__file__).with_name("deepspeed")
TESTED = {"accelerate": "1.15.0", "deepspeed": "0.19.8"}
"""The releases that the tests run with; setup.py names the same."""
FSDP2 = "fsdp2"
"""How a run with --fsdp shares the memory, in records and logs. DeepSpeed's ways are zero0 to zero3; no way at all is plain."""
HOSTED = {"optimizer": "optimizer", "param": "weights"}
"""What a file of DeepSpeed may keep outside of the device: offload_optimizer and offload_param."""


def deepspeed_settings(named: str) -> Optional[dict[str, Any]]:
    """The DeepSpeed configuration that --deepspeed names; None for "".

    Args:
        named: zero1, zero2 or zero3, or a JSON file.

    Raises:
        ValueError: no such file, no JSON, or a section that the recipe decides.
    """
    if not named:
        return None
    path = _BUILTIN / f"{named}.json" if named in ("zero1", "zero2", "zero3") else Path(named)
    if not path.is_file():
        raise ValueError(f"--deepspeed {named}: expected zero1, zero2, zero3 or a JSON file; no such file")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"--deepspeed {path}: no JSON ({error})") from error
    if not isinstance(content, dict) or not isinstance(content.get("zero_optimization"), dict):
        raise ValueError(f"--deepspeed {path}: expected an object with a section zero_optimization")
    taken = sorted({"optimizer", "scheduler"} & set(content))
    if taken:
        raise ValueError(
            f"--deepspeed {path} has the section {', '.join(taken)}; leave it out: the recipe's train section sets the optimizer, with a "
            "learning rate for each module, and the schedule"
        )
    content["zero_allow_untested_optimizer"] = True
    # accelerate then puts DeepSpeed's Adam in the place of torch's AdamW, with the same groups
    content.setdefault("zero_force_ds_cpu_optimizer", offloads(content, "optimizer") and not lacking_compiler())
    if content["zero_optimization"].get("stage") == 3:
        content["zero_optimization"].setdefault("stage3_gather_16bit_weights_on_model_save", True)  # the export needs it
    return content


def lacking_compiler() -> list[str]:
    """The programs that compile DeepSpeed's Adam and are not here."""
    return [name for name in (os.environ.get("CXX", "c++"), "ninja") if shutil.which(name) is None]


def host_adam(settings: Optional[dict[str, Any]]) -> str:
    """Whose AdamW updates optimizer state in host memory: DeepSpeed's where a compiler is and its file does not refuse it, else torch's.

    Empty where the optimizer is on the device.
    """
    if settings is None or not offloads(settings, "optimizer"):
        return ""
    return "DeepSpeed's AdamW" if settings["zero_force_ds_cpu_optimizer"] else "torch's AdamW"


@contextmanager
def naming_the_compiler() -> Iterator[None]:
    """Says what to do where DeepSpeed's Adam cannot be compiled, which happens when it is first used.

    Raises:
        ValueError: in place of DeepSpeed's error.
    """
    try:
        yield
    except RuntimeError as error:
        if "cpu_adam op" not in str(error):
            raise
        raise ValueError(
            f"{error} Mend the compiler, which said why above, or set \"zero_force_ds_cpu_optimizer\": false in the file of --deepspeed: "
            "torch's AdamW then updates optimizer state in host memory"
        ) from error


def check_packages(deepspeed: str) -> list[str]:
    """The packages that a run needs beyond this project's own, with their versions.

    Args:
        deepspeed: what --deepspeed names.

    Raises:
        ValueError: some are not installed.
    """
    needed = ["accelerate", *(["deepspeed"] if deepspeed else [])]
    missing = [name for name in needed if find_spec(name) is None]
    if missing:
        option = f" --deepspeed {deepspeed}" if deepspeed else ""
        raise ValueError(
            f"--engine hf{option}: {sys.executable} lacks {' and '.join(missing)}; run: {sys.executable} -m pip install "
            f"--no-build-isolation {' '.join(f'{name}=={TESTED[name]}' for name in missing)}"
        )
    return [f"{name} {version(name)}" for name in needed]


def sharing_of(settings: Optional[dict[str, Any]], *, fsdp: bool) -> str:
    """How a run shares weights and optimizer: plain, fsdp2, or zero1 to zero3 and whose AdamW works in host memory.

    A run goes on with the same way only: torch's and DeepSpeed's AdamW do not read each other's states.

    Args:
        settings: of DeepSpeed; None without it.
        fsdp: whether --fsdp is given.

    Raises:
        ValueError: both are given, or one is and no launcher started this process.
    """
    _one_of_them(settings, fsdp=fsdp)
    if (settings is not None or fsdp) and "RANK" not in os.environ:
        option = "--fsdp" if fsdp else "--deepspeed"
        raise ValueError(f"{option} needs a launcher; run: torchrun --standalone --nproc_per_node N -m mindspeed_vita.cli.main train ...")
    if settings is not None:
        return " and ".join(filter(None, (f"zero{zero_stage(settings)}", host_adam(settings))))
    return FSDP2 if fsdp else "plain"


def _one_of_them(settings: Optional[dict[str, Any]], *, fsdp: bool) -> None:
    if settings is not None and fsdp:
        raise ValueError("--deepspeed and --fsdp both share weights and optimizer; use one of them")


def describe(deepspeed: str, *, fsdp: bool) -> str:
    """One line for `vita check`: the packages, and how the ranks share the memory.

    Raises:
        ValueError: packages are missing, or the file of --deepspeed is refused.
    """
    settings = deepspeed_settings(deepspeed)
    _one_of_them(settings, fsdp=fsdp)
    sharing = "FSDP2" if fsdp else "no sharing of memory"
    if settings is not None:
        hosted = " and ".join(name for kind, name in HOSTED.items() if offloads(settings, kind))
        sharing = f"ZeRO-{zero_stage(settings)} of {deepspeed}{f', {hosted} in host memory' if hosted else ''}"
        sharing += f", updated by {host_adam(settings)}" if host_adam(settings) else ""
    return f"{', '.join(check_packages(deepspeed))}; {sharing}"


def offloads(settings: Optional[dict[str, Any]], kind: str) -> bool:
    """Whether DeepSpeed keeps a kind of state (optimizer or param) outside of the device."""
    section = (settings or {}).get("zero_optimization", {}).get(f"offload_{kind}") or {}
    return bool(section.get("device", "none") != "none")


def zero_stage(settings: Optional[dict[str, Any]]) -> int:
    """ZeRO stage of a configuration; 0 without one."""
    return int(settings["zero_optimization"].get("stage", 0)) if settings else 0


def training_arguments(
    recipe: Recipe, layout: ParallelLayout, platform: Platform, *, deepspeed: Optional[dict[str, Any]], fsdp: bool
) -> Any:
    """Trainer's arguments. Constructing them also sets DeepSpeed up, so that models load in parts: build the model afterwards."""
    from transformers import TrainingArguments

    train, checkpoint, cpu = recipe.train, recipe.checkpoint, platform.device.type == "cpu"
    if deepspeed is not None and cpu:
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    # every process of a context-parallel group counts as a data-parallel one here: it works on a part of the pack
    return TrainingArguments(
        output_dir=checkpoint.directory,
        per_device_train_batch_size=1,
        gradient_accumulation_steps=train.global_batch // layout.dp_size,
        max_steps=train.steps,
        learning_rate=train.lr,
        weight_decay=train.weight_decay,
        adam_beta1=train.beta1,
        adam_beta2=train.beta2,
        adam_epsilon=train.eps,
        max_grad_norm=train.clip_grad,
        bf16=train.precision == "bf16" and not fsdp,  # FSDP2 casts by itself
        seed=train.seed,
        deepspeed=deepspeed,
        use_cpu=cpu,
        ddp_backend=platform.collectives if cpu else None,
        ddp_find_unused_parameters=False,
        save_strategy="steps",
        save_steps=checkpoint.save_every,
        save_total_limit=checkpoint.keep or None,
        logging_strategy="no",
        report_to=[],
        disable_tqdm=True,
        remove_unused_columns=False,
        ignore_data_skip=True,  # our loader goes on by itself
        dataloader_pin_memory=False,
        accelerator_config={"split_batches": False, "dispatch_batches": False, "even_batches": False},
    )
