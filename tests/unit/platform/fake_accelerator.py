"""A device in one module: an accelerator that computes on the CPU. A recipe's `plugins` names this file.

Its attention kernels are those of the plain reference and its tokenwise kernels are plain torch; both count their calls.
"""

from __future__ import annotations

import atexit
import sys
from collections import Counter

import torch

from mindspeed_vita.ops.attention import reference, register_backend
from mindspeed_vita.ops.tokenwise import native, register_kernels
from mindspeed_vita.platform import Capabilities, Memory, Platform, register_platform
from mindspeed_vita.platform.base import host_memory, seed_host
from mindspeed_vita.platform.redirect import redirect_cuda

calls: Counter[str] = Counter()


class FakePlatform(Platform):
    """What the engine asks of a device."""

    def __init__(self, local_rank: int) -> None:
        self.name = "fake"
        self.device = torch.device("cpu")  # no kernel of torch's knows another
        self.collectives = "gloo"
        self.capabilities = Capabilities(accelerator=True, fused_optimizer=False, pinned_memory=False)

    def activate(self) -> None:
        redirect_cuda(self.device, torch.random, torch.cpu)

    def seed(self, seed: int) -> None:
        seed_host(seed)

    def rng_state(self) -> dict[str, torch.Tensor]:
        return {"cpu": torch.random.get_rng_state()}

    def set_rng_state(self, state: dict[str, torch.Tensor]) -> None:
        torch.random.set_rng_state(state["cpu"])

    def device_count(self) -> int:
        return 1

    def memory(self) -> Memory:
        return host_memory()

    def synchronize(self) -> None:
        pass


def _counted(name, function):
    def call(*arguments, **keywords):
        calls[name] += 1
        return function(*arguments, **keywords)

    return call


def refuse(*_):
    """Serves everything."""


# what ops/attention/registry.py asks of a backend
blocks_forward = _counted("blocks_forward", reference.blocks_forward)
blocks_backward = _counted("blocks_backward", reference.blocks_backward)
merge_ = _counted("merge_", reference.merge_)
tiles = _counted("tiles", reference.tiles)
# what ops/tokenwise/api.py asks of fused kernels
rms_norm = _counted("rms_norm", native.rms_norm)
swiglu = _counted("swiglu", native.swiglu)
apply_rotary = _counted("apply_rotary", native.apply_rotary)

register_platform("fake", FakePlatform, lambda: None)
register_backend("fake", __name__, "cpu")
register_kernels("cpu", __name__)
atexit.register(lambda: print(f"calls: {sorted(calls)}", file=sys.stderr))
