"""Which device this process uses: npu, else cuda, else cpu; the environment variable DEVICE overrides."""

from __future__ import annotations

import os
import sys
from typing import Callable, Optional

from mindspeed_vita.platform import cpu, cuda, npu
from mindspeed_vita.platform.base import Platform

_FACTORIES: dict[str, Callable[[int], Platform]] = {
    "npu": npu.NpuPlatform,
    "cuda": cuda.CudaPlatform,
    "cpu": cpu.CpuPlatform,
}
_MISSING: dict[str, Callable[[], Optional[str]]] = {"npu": npu.why_unavailable, "cuda": cuda.why_unavailable, "cpu": lambda: None}
_announced: set[str] = set()


def get_platform(override: Optional[str] = None, *, local_rank: Optional[int] = None) -> Platform:
    """The platform of this process. Touches no device before `Platform.activate`.

    Args:
        override: auto, npu, cuda or cpu; None reads the environment variable DEVICE (unset: auto).
        local_rank: index of the device on this host; None reads LOCAL_RANK (unset: 0).

    Raises:
        ValueError: an unknown name, or a device that is asked for by name and is not there.
    """
    choice = (override or os.environ.get("DEVICE") or "auto").strip().lower()
    rank = int(os.environ.get("LOCAL_RANK", "0")) if local_rank is None else local_rank
    if choice == "cpu":
        # asked for by name: hide GPUs before torch has looked for them, as megatron.core's CUDA calls will be pointed at the CPU
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    if choice == "auto":
        choice = next(name for name, missing in _MISSING.items() if missing() is None)
    elif choice not in _FACTORIES:
        raise ValueError(f"DEVICE={choice!r} is not known; use auto, npu, cuda or cpu")
    else:
        reason = _MISSING[choice]()
        if reason is not None:
            advice = "`vita doctor` says what to do; unset DEVICE to choose automatically, or use DEVICE=cpu"
            raise ValueError(f"DEVICE={choice} was asked for, but {reason}; {advice}")
    return _FACTORIES[choice](rank)


def announce(platform: Platform, *, rank: int = 0) -> None:
    """Print the chosen device, once per process and only on rank 0."""
    line = platform.describe()
    if rank == 0 and line not in _announced:
        _announced.add(line)
        print(line, file=sys.stderr, flush=True)
