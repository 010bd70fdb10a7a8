"""Which device this process uses: npu, else cuda, else cpu; the environment variable DEVICE overrides."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from typing import Callable, Optional

from mindspeed_vita.platform import cpu, cuda, npu
from mindspeed_vita.platform.base import Platform


@dataclass(frozen=True)
class _Device:
    make: Callable[[int], Platform]
    """Makes the platform of a local rank."""
    why_unavailable: Callable[[], Optional[str]]


# the first one that is there is chosen
_DEVICES = {
    "npu": _Device(npu.NpuPlatform, npu.why_unavailable),
    "cuda": _Device(cuda.CudaPlatform, cuda.why_unavailable),
    "cpu": _Device(cpu.CpuPlatform, lambda: None),
}
_announced: set[str] = set()


def register_platform(name: str, make: Callable[[int], Platform], why_unavailable: Callable[[], Optional[str]]) -> None:
    """Adds a device, which goes before those that are known already. For a module that the recipe's `plugins` names.

    Args:
        name: what DEVICE calls it.
        make: makes the platform of a local rank; touches no device.
        why_unavailable: None where the device is usable here, else the reason.

    Raises:
        ValueError: the name is taken by another device.
    """
    global _DEVICES
    device = _Device(make, why_unavailable)
    if name == "auto" or _DEVICES.get(name, device) != device:
        raise ValueError(f"the device name {name!r} is taken; names so far are auto, {', '.join(_DEVICES)}")
    _DEVICES = {name: device, **_DEVICES}


def get_platform(override: Optional[str] = None, *, local_rank: Optional[int] = None) -> Platform:
    """The platform of this process. Touches no device before `Platform.activate`.

    Args:
        override: auto, or the name of a device; None reads the environment variable DEVICE (unset: auto).
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
        choice = next(name for name, device in _DEVICES.items() if device.why_unavailable() is None)
    elif choice not in _DEVICES:
        *names, last = ("auto", *_DEVICES)
        raise ValueError(f"DEVICE={choice!r} is not known; use {', '.join(names)} or {last}")
    else:
        reason = _DEVICES[choice].why_unavailable()
        if reason is not None:
            advice = "`vita doctor` says what to do; unset DEVICE to choose automatically, or use DEVICE=cpu"
            raise ValueError(f"DEVICE={choice} was asked for, but {reason}; {advice}")
    return _DEVICES[choice].make(rank)


def announce(platform: Platform, *, rank: int = 0) -> None:
    """Print the chosen device, once per process and only on rank 0."""
    line = platform.describe()
    if rank == 0 and line not in _announced:
        _announced.add(line)
        print(line, file=sys.stderr, flush=True)
