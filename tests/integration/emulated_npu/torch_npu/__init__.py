"""An emulated torch_npu: MindSpeed's imports and calls on a machine without Ascend. Tensors live in host memory, collectives run on gloo.

It shows that code fits together and computes the same numbers; it shows nothing about kernels, HCCL, memory or speed.
"""

import torch

torch.utils.rename_privateuse1_backend("npu")  # makes torch.device("npu") a device
torch._C._get_accelerator = lambda *args: torch.device("cpu")  # but there is none of that name

from torch_npu import npu  # noqa: E402

torch.npu = npu
__version__ = torch.__version__.split("+")[0]
unsupported_dtype = []

from torch_npu.kernels import *  # noqa: E402, F403
from torch_npu.modules import install  # noqa: E402

install()


def __getattr__(name: str):
    if name.startswith("__") or name[0].isupper():  # a class that is not there is asked for with hasattr
        raise AttributeError(name)

    def missing(*args, **kwargs):
        raise NotImplementedError(f"the emulated torch_npu has no {name}")

    return missing
