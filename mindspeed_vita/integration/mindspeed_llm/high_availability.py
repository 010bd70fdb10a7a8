"""What of MindIO's fault tolerance this package trains under: the checkpoint after a fault.

The table of verdicts refuses the flags of repairs inside a run.
"""

from __future__ import annotations

import argparse
import importlib.util
from collections.abc import Mapping
from typing import Any

ENVIRONMENT = "HIGH_AVAILABILITY"
"""Environment variable of MindCluster's: strategies with commas between them. MindSpeed-LLM reads it after this package's checks."""
_STRATEGIES = {
    "dump": (),
    "recover": ("enable_worker_reboot",),
    "retry": ("enable_hbmfault_repair",),
    "elastic-training": ("enable_elastic_training",),
}
"""Strategy -> what MindSpeed-LLM switches on in addition to --enable-high-availability."""
_REPLICAS = 2
"""Copies that MindSpeed-LLM keeps of every part of the distributed optimizer."""
_NOT_WITH = {
    "overlap_param_gather": "MindSpeed-LLM's own gathering of weights keeps a list of transfers where Megatron waits for one",
    "swap_attention": "MindSpeed-LLM does not support them together",
    "swap_optimizer": "MindSpeed-LLM does not support them together",
    "disable_gloo_group": "MindSpeed-LLM does not support them together",
    "reuse_fp32_param": "they were never run together",
}


def apply_environment(arguments: argparse.Namespace, environment: Mapping[str, str]) -> None:
    """Sets what MindSpeed-LLM sets later from HIGH_AVAILABILITY, so that the checks of the flags see it."""
    for word in environment.get(ENVIRONMENT, "").split(","):
        more = _STRATEGIES.get(word.lower())
        if more is not None:
            vars(arguments).update(dict.fromkeys(("enable_high_availability", *more), True))


def is_watched_by_mindio(arguments: argparse.Namespace) -> bool:
    """Whether MindIO watches the processes of the run. Versions of Megatron that know nothing of MindIO have no such argument."""
    return bool(getattr(arguments, "enable_high_availability", False))


def check_high_availability(arguments: argparse.Namespace, *, adapters: bool) -> list[str]:
    """What does not go together with --enable-high-availability, each with what to do.

    Args:
        arguments: parsed, after `apply_environment`.
        adapters: the run trains adapters.
    """
    if not is_watched_by_mindio(arguments):
        return []
    start, problems = "--enable-high-availability", []
    if not _get(arguments, "bf16"):
        problems.append(f"{start} in fp32: MindIO's optimizers are for bf16; use --bf16, or leave it out")
    if not _get(arguments, "save"):
        problems.append(f"{start} without --save: there is no folder for the checkpoint that is written after a fault; add it")
    if _get(arguments, "ckpt_format") != "torch":
        problems.append(f"{start} with --ckpt-format {_get(arguments, 'ckpt_format')}: MindIO writes the format torch; use that")
    if adapters:
        problems.append(f"{start} with --vita-lora-rank: MindSpeed-LLM does not write adapters after a fault; leave one of them out")
    for name, why in _NOT_WITH.items():
        if _get(arguments, name):
            problems.append(f"{start} with --{name.replace('_', '-')}: {why}; leave one of them out")
    if importlib.util.find_spec("mindio_acp") is not None:
        problems.append(
            f"{start} where mindio_acp is installed: MindSpeed-LLM then saves by it, in a format of its own, which this package does not "
            "read; uninstall mindio_acp, or leave the flag out"
        )
    return problems


def copies_of_optimizer(arguments: argparse.Namespace) -> int:
    """How many ranks hold each part of the distributed optimizer. MindSpeed-LLM corrects Megatron's norm of the gradients for it."""
    return _REPLICAS if is_watched_by_mindio(arguments) and _get(arguments, "use_distributed_optimizer") else 1


def check_replicas(arguments: argparse.Namespace) -> None:
    """Refuses numbers of processes of which MindIO cannot make two groups with the whole optimizer each.

    Args:
        arguments: parsed, with the number of processes.

    Raises:
        ValueError: the processes with the same weights are not an even number.
    """
    copies = copies_of_optimizer(arguments)
    tp, pp = (_get(arguments, f"{axis}_model_parallel_size") or 1 for axis in ("tensor", "pipeline"))
    same = arguments.world_size // (tp * pp)
    if same % copies:
        raise ValueError(
            f"--enable-high-availability on {arguments.world_size} processes with tp={tp} pp={pp}: {same} of them have the same weights, "
            f"and MindIO keeps {copies} copies of the optimizer among these; use an even number of data or context parallel ranks"
        )


def _get(arguments: argparse.Namespace, name: str) -> Any:
    return getattr(arguments, name, None)
