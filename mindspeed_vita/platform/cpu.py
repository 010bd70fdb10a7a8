"""The plain CPU: default of a fresh machine and of the tests. `enable_megatron` makes megatron.core run without CUDA."""

from __future__ import annotations

import torch

from mindspeed_vita.platform.base import Capabilities, Memory, Platform, host_memory, seed_host
from mindspeed_vita.platform.redirect import redirect_cuda


class CpuPlatform(Platform):
    """Host memory and gloo."""

    def __init__(self, local_rank: int = 0) -> None:
        del local_rank  # every process of a host shares its CPU
        self.name = "cpu"
        self.device = torch.device("cpu")
        self.collectives = "gloo"
        self.capabilities = Capabilities(accelerator=False, fused_optimizer=True, pinned_memory=False)

    def activate(self) -> None:
        enable_megatron()

    def seed(self, seed: int) -> None:
        seed_host(seed)

    def rng_state(self) -> dict[str, torch.Tensor]:
        return {"cpu": torch.random.get_rng_state()}

    def set_rng_state(self, state: dict[str, torch.Tensor]) -> None:
        if "cpu" in state:
            torch.random.set_rng_state(state["cpu"])

    def device_count(self) -> int:
        return 1

    def memory(self) -> Memory:
        return host_memory()

    def synchronize(self) -> None:
        pass


def enable_megatron() -> None:
    """Point the CUDA call sites of unmodified megatron.core at the CPU. Idempotent.

    Raises:
        ValueError: if this process has a CUDA device: the redirection would take it away from everything else.
    """
    if torch.cuda.is_available():
        raise ValueError(
            "megatron.core can be pointed at the CPU only where no CUDA device is visible; set CUDA_VISIBLE_DEVICES= beside DEVICE=cpu"
        )
    redirect_cuda(torch.device("cpu"), torch.random, torch.cpu)
