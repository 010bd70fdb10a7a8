"""From a recipe to Trainer's arguments: how the ranks share the memory, and the packages that this needs."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any, Optional

from mindspeed_vita.config import Recipe
from mindspeed_vita.integration.hf_trainer.deepspeed_file import (
    decided_by_recipe,
    deepspeed_settings,
    host_adam,
    hosted,
    zero_stage,
)
from mindspeed_vita.parallel.layout import ParallelLayout
from mindspeed_vita.platform import Platform

TESTED = {"accelerate": "1.15.0", "deepspeed": "0.19.8"}
"""The releases that the tests run with; setup.py names the same."""
FSDP2 = "fsdp2"
"""How a run with --fsdp shares the memory, in records and logs. DeepSpeed's ways are zero0 to zero3; no way at all is plain."""


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


def describe(recipe: Recipe, processes: int, deepspeed: str, *, fsdp: bool) -> str:
    """One line for `vita check`: the packages, and how the ranks share the memory.

    Args:
        recipe: the run.
        processes: it will have.
        deepspeed, fsdp: as of `vita train`.

    Raises:
        ValueError: packages are missing, or the file of --deepspeed is refused or contradicts the recipe.
    """
    settings = deepspeed_settings(deepspeed)
    _one_of_them(settings, fsdp=fsdp)
    sharing = "FSDP2" if fsdp else "no sharing of memory"
    if settings is not None:
        sharing = ", ".join(filter(None, (f"ZeRO-{zero_stage(settings)} of {deepspeed}", hosted(settings))))
        sharing += f", updated by {host_adam(settings)}" if host_adam(settings) else ""
        decided_by_recipe(settings, recipe, processes)
    return f"{', '.join(check_packages(deepspeed))}; {sharing}"


def training_arguments(
    recipe: Recipe, layout: ParallelLayout, platform: Platform, *, deepspeed: Optional[dict[str, Any]], fsdp: bool
) -> Any:
    """Trainer's arguments. Constructing them also sets DeepSpeed up, so that models load in parts: build the model afterwards.

    Raises:
        ValueError: DeepSpeed's file contradicts the recipe.
    """
    from transformers import TrainingArguments

    train, checkpoint, cpu = recipe.train, recipe.checkpoint, platform.device.type == "cpu"
    if deepspeed is not None:
        deepspeed = decided_by_recipe(deepspeed, recipe, layout.dp_size * layout.cp_size)
        if cpu:
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
