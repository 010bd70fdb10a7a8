"""NVIDIA GPUs, where megatron.core runs as it is."""

from __future__ import annotations

from typing import Optional

import torch

from mindspeed_vita.platform.base import Capabilities, Memory, Platform, seed_host


class CudaPlatform(Platform):
    """One GPU per process, NCCL for its tensors."""

    def __init__(self, local_rank: int = 0) -> None:
        count = torch.cuda.device_count()
        if local_rank >= count:
            raise ValueError(f"LOCAL_RANK={local_rank} needs {local_rank + 1} GPUs on this host, found {count}; start fewer processes")
        self.name = "cuda"
        self.device = torch.device("cuda", local_rank)
        self.collectives = "cpu:gloo,cuda:nccl"
        self.capabilities = Capabilities(accelerator=True, fused_optimizer=True, pinned_memory=True)

    def activate(self) -> None:
        torch.cuda.set_device(self.device)

    def seed(self, seed: int) -> None:
        seed_host(seed)
        torch.cuda.manual_seed(seed)

    def rng_state(self) -> dict[str, torch.Tensor]:
        return {"cpu": torch.random.get_rng_state(), "cuda": torch.cuda.get_rng_state(self.device)}

    def set_rng_state(self, state: dict[str, torch.Tensor]) -> None:
        if "cpu" in state:
            torch.random.set_rng_state(state["cpu"])
        if "cuda" in state:
            torch.cuda.set_rng_state(state["cuda"], self.device)

    def device_count(self) -> int:
        return torch.cuda.device_count()

    def memory(self) -> Memory:
        total = torch.cuda.get_device_properties(self.device).total_memory
        return Memory(peak=torch.cuda.max_memory_allocated(self.device), total=total)

    def synchronize(self) -> None:
        torch.cuda.synchronize(self.device)

    def device_name(self) -> str:
        return torch.cuda.get_device_name(self.device)

    def describe_hardware(self) -> str:
        return f"{self.device_name()}, CUDA {torch.version.cuda}"


def why_unavailable() -> Optional[str]:
    """None where a GPU is usable, else the reason."""
    return None if torch.cuda.is_available() else "torch sees no CUDA device (torch.cuda.is_available() is False)"
