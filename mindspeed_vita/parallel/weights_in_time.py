"""Weights that megatron's DDP gathers behind the forward pass are waited for also where they are read without a call of their module."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch


def wait_before_reads(model: Any) -> None:
    """Makes modules whose weights are read elsewhere run their hooks in time.

    DDP waits for a module's weights in a hook before each call of that module. A module that is not called itself, or only after its
    weights were read, gets its hooks called before a module that is called in time. While DDP has no hooks nothing happens.

    Args:
        model: a VitaModel, or any module with its `read_elsewhere`. Before or after DDP wraps it.
    """
    for called, read in model.read_elsewhere():
        if called is not read:  # its own call runs its own hooks
            called.register_forward_pre_hook(partial(_run_hooks, read))


def _run_hooks(read: torch.nn.Module, *arguments: Any) -> None:
    for hook in tuple(read._forward_pre_hooks.values()):
        if getattr(hook, "__module__", "").startswith("megatron.core.distributed"):  # DDP's, and not one that wants the module's input
            hook(read, ())
