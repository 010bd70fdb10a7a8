"""Submodules of torch_npu that upstream imports but, on the paths that are run here, does not call."""

import sys
import types

import torch_npu


class _Stub(types.ModuleType):
    """A module whose functions exist and fail when called."""

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)

        def missing(*args, **kwargs):
            raise NotImplementedError(f"the emulated torch_npu has no {self.__name__}.{name}")

        return missing


class _HcclOptions:
    def __init__(self):
        self.hccl_config = {}


_CONTENT = {
    "utils": {"reset_thread_affinity": lambda: None},
    "utils.collect_env": {"get_cann_version": lambda *args: "9.1.0"},
    "utils.cpp_extension": {},
    "utils.flops_count": {},
    "npu.utils": {},
    "npu.memory": {},
    "npu.amp": {},
    "npu._recovery": {},
    "profiler": {},
    "dynamo": {},
    "distributed": {},
    "_C": {},
    "_C._distributed_c10d": {"ProcessGroupHCCL": type("ProcessGroupHCCL", (), {"Options": _HcclOptions})},
}


def install():
    """Puts the stubs into sys.modules."""
    for name, content in _CONTENT.items():
        module = _Stub(f"torch_npu.{name}")
        module.__path__ = []
        module.__dict__.update(content)
        sys.modules[module.__name__] = module
        parent, _, leaf = name.rpartition(".")
        setattr(sys.modules[f"torch_npu.{parent}"] if parent else torch_npu, leaf, module)
