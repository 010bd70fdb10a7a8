"""Whether an optional package of kernels is installed, loads, is new enough, and takes the arguments that are passed to it."""

from __future__ import annotations

import importlib
import importlib.metadata
import inspect
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Optional

import torch


def refuse_package(
    name: str, module: str, *, oldest: tuple[int, ...] = (), arguments: Optional[Mapping[str, Sequence[str]]] = None
) -> Optional[str]:
    """Why a package cannot serve; None if it can.

    Args:
        name: of the installed distribution.
        module: which is imported.
        oldest: first release that serves; empty: any.
        arguments: by function of the module, the names of the arguments that it is called with. A function whose signature cannot be
            read is taken as it is.
    """
    try:
        version = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
    if oldest and release_of(version) < oldest:
        return f"{name} {version} is too old; install {'.'.join(map(str, oldest))} or newer"
    try:
        imported = importlib.import_module(module)
    except (ImportError, OSError) as error:  # built for another torch, or libraries of CUDA are missing
        return f"{name} {version} does not load: {error}"
    lacking = _lacking(imported, arguments or {})
    return f"{name} {version} has another interface ({lacking}); install another release" if lacking else None


def release_of(version: str) -> tuple[int, ...]:
    """The first two numbers of a version: (2, 7) of 2.7.4.post1."""
    return tuple(int(part) for part in version.split(".")[:2])


def refuse_heads(dtype: torch.dtype, width: int, widest: int = 256) -> Optional[str]:
    """Why flash kernels cannot serve heads of a dtype and a width; None if they can."""
    if dtype not in (torch.bfloat16, torch.float16):
        return f"takes bf16 and fp16, not {dtype}"
    return f"takes head widths that are multiples of 8 up to {widest}, not {width}" if width % 8 or width > widest else None


def _lacking(module: ModuleType, arguments: Mapping[str, Sequence[str]]) -> str:
    for name, wanted in arguments.items():
        function = getattr(module, name, None)
        if function is None:
            return f"no {name}"
        parameters = inspect.signature(function).parameters
        if any(one.kind is one.VAR_KEYWORD for one in parameters.values()):
            continue
        if missing := [argument for argument in wanted if argument not in parameters]:
            return f"{name} without {', '.join(missing)}"
    return ""
