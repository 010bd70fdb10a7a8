"""Ascend NPUs through torch_npu, imported only when an NPU is looked for. Not run on Ascend hardware so far."""

from __future__ import annotations

import importlib.util
from types import ModuleType
from typing import Optional

import torch

from mindspeed_vita.platform.base import Capabilities, Memory, Platform, seed_host
from mindspeed_vita.platform.redirect import redirect_cuda


class NpuPlatform(Platform):
    """One NPU per process, HCCL for its tensors."""

    def __init__(self, local_rank: int = 0) -> None:
        self._npu = _load_npu()
        count = self._npu.device_count()
        if local_rank >= count:
            raise ValueError(f"LOCAL_RANK={local_rank} needs {local_rank + 1} NPUs on this host, found {count}; start fewer processes")
        self.name = "npu"
        self.device = torch.device("npu", local_rank)
        self.collectives = "cpu:gloo,npu:hccl"
        self.capabilities = Capabilities(accelerator=True, fused_optimizer=False, pinned_memory=True)

    def activate(self) -> None:
        self._npu.set_device(self.device)
        redirect_cuda(self.device, self._npu, self._npu)

    def seed(self, seed: int) -> None:
        seed_host(seed)
        self._npu.manual_seed(seed)

    def rng_state(self) -> dict[str, torch.Tensor]:
        return {"cpu": torch.random.get_rng_state(), "npu": self._npu.get_rng_state(self.device)}

    def set_rng_state(self, state: dict[str, torch.Tensor]) -> None:
        if "cpu" in state:
            torch.random.set_rng_state(state["cpu"])
        if "npu" in state:
            self._npu.set_rng_state(state["npu"], self.device)

    def device_count(self) -> int:
        return int(self._npu.device_count())

    def memory(self) -> Memory:
        total = self._npu.get_device_properties(self.device).total_memory
        return Memory(peak=self._npu.max_memory_allocated(self.device), total=total)

    def synchronize(self) -> None:
        self._npu.synchronize()

    def device_name(self) -> str:
        return str(self._npu.get_device_name(self.device))

    def describe_hardware(self) -> str:
        return f"{self.device_name()}, CANN {self._npu.utils.get_cann_version() or 'of unknown version'}"


def why_unavailable() -> Optional[str]:
    """None where an NPU is usable, else the reason."""
    if importlib.util.find_spec("torch_npu") is None:
        return "torch_npu is not installed"
    try:
        npu = _load_npu()
    except (ImportError, RuntimeError, OSError) as error:  # OSError, ImportError: CANN libraries missing; RuntimeError: no driver
        return f"torch_npu does not load: {error}"
    return None if npu.is_available() else "torch_npu sees no NPU"


def _load_npu() -> ModuleType:
    import torch_npu

    return torch_npu.npu
