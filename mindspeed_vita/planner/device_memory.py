"""Memory of a device that no tensor holds. A trace does not contain it, and nobody measured it here: each amount names its source."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from mindspeed_vita.planner.device import KINDS

if TYPE_CHECKING:
    from mindspeed_vita.planner.trace.result import Trace

_MIB, _GIB = 2**20, 2**30
_HCCL_BUFFER = 200 * _MIB
_NCCL_BUFFER = 4 * _MIB
_NCCL_CHANNELS = 32
_FRAGMENTATION = 0.05


@dataclass(frozen=True)
class Extra:
    """One amount."""

    name: str
    bytes: int
    source: str


def extras(kind: str, trace: Trace) -> list[Extra]:
    """What a device holds in addition to the tensors of a rank.

    Args:
        kind: npu or cuda.
        trace: of the rank. Its process groups of more than one rank have buffers.

    Raises:
        ValueError: another kind.
    """
    if kind not in KINDS:
        raise ValueError(f"device {kind!r}; expected one of {', '.join(KINDS)}")
    groups = sum(size > 1 for _, size in trace.communicators)
    if kind == "npu":
        buffers = Extra(
            f"HCCL buffers, {groups} groups",
            groups * 2 * _HCCL_BUFFER,
            "CANN's documentation of HCCL_BUFFSIZE: each communicator takes twice 200 MB, the default",
        )
    else:
        buffers = Extra(
            f"NCCL buffers, {groups} groups",
            groups * 2 * _NCCL_CHANNELS * _NCCL_BUFFER,
            "NCCL's documentation of NCCL_BUFFSIZE: 4 MiB between two devices, the default. "
            f"Allowance: two neighbours, {_NCCL_CHANNELS} channels",
        )
    return [
        Extra("context and kernels", _GIB, "allowance, not measured"),
        buffers,
        Extra("fragmentation", int(_FRAGMENTATION * trace.peak), f"allowance of {_FRAGMENTATION:.0%} of the tensors, not measured"),
    ]
