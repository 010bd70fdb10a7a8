"""torch.npu as far as MindSpeed and this package call it: one device, which is the host."""

import contextlib
import time
from collections import defaultdict
from types import SimpleNamespace

import torch

CPU = torch.device("cpu")


class Stream:
    """Work is done when it is submitted, so there is nothing to wait for."""

    npu_stream = cuda_stream = 0

    def __init__(self, *args, **kwargs):
        pass

    def wait_stream(self, stream):
        pass

    def wait_event(self, event):
        pass

    def record_event(self, event=None):
        return event or Event()

    def synchronize(self):
        pass

    def query(self):
        return True

    def __enter__(self):
        return self

    def __exit__(self, *error):
        return False


class Event:
    """A point in time."""

    def __init__(self, *args, **kwargs):
        self.record()

    def record(self, stream=None):
        self.seconds = time.perf_counter()

    def wait(self, stream=None):
        pass

    def query(self):
        return True

    def synchronize(self):
        pass

    def elapsed_time(self, end):
        return (end.seconds - self.seconds) * 1000


SyncLaunchStream = Stream
_stream = Stream()


mstx = SimpleNamespace(range_start=lambda *args, **kwargs: 0, range_end=lambda *args, **kwargs: None)
"""Marks for a profiler; MindSpeed's core_r0.16.0 puts them in the place of NVTX's."""


@contextlib.contextmanager
def device(index=None):
    """Selects nothing: there is one device."""
    yield


device_of = stream = device


class _Generators:
    def __getitem__(self, index):
        return torch.default_generator

    def __len__(self):
        return 1


default_generators = _Generators()


def _lazy_call(callback, **kwargs):
    callback()


def _nothing(*args, **kwargs):
    return None


def _zero(*args, **kwargs):
    return 0


set_device = init = _lazy_init = synchronize = set_stream = empty_cache = ipc_collect = _nothing
set_compile_mode = set_option = set_per_process_memory_fraction = reset_peak_memory_stats = reset_max_memory_allocated = seed = _nothing
stop_device = restart_device = _nothing  # a real one then raises FORCE STOP in whoever uses it
memory_allocated = max_memory_allocated = memory_reserved = max_memory_reserved = _zero


def current_device():
    return CPU


def device_count():
    return 8


def is_available():
    return True


is_initialized = is_bf16_supported = is_available


def is_current_stream_capturing():
    return False


def current_stream(device=None):
    return _stream


default_stream = current_stream


def get_amp_supported_dtype():
    return [torch.float16, torch.bfloat16]


def memory_stats(device=None):
    return defaultdict(int)


def mem_get_info(device=None):
    return 32 << 30, 64 << 30


def get_device_name(device=None):
    return "Ascend910B (emulated)"


def get_device_properties(device=None):
    return SimpleNamespace(name=get_device_name(), total_memory=64 << 30, major=9, minor=0, multi_processor_count=24)


def get_device_capability(device=None):
    return 9, 0


def manual_seed(seed):
    torch.default_generator.manual_seed(seed)


manual_seed_all = manual_seed


def get_rng_state(device=None):
    return torch.get_rng_state()


def set_rng_state(state, device=None):
    torch.set_rng_state(state)


def get_rng_state_all():
    return [torch.get_rng_state()]


def set_rng_state_all(states):
    torch.set_rng_state(states[0])


class _TypeMeta(type):
    def __instancecheck__(cls, value):
        return isinstance(value, torch.Tensor) and value.dtype == cls.dtype

    def __call__(cls, *args):
        sizes = args and all(isinstance(size, int) for size in args)
        return torch.empty(args, dtype=cls.dtype) if sizes else torch.tensor(args[0] if args else [], dtype=cls.dtype)


_TYPES = {
    "Float": torch.float32, "Half": torch.float16, "BFloat16": torch.bfloat16, "Double": torch.float64,
    "Long": torch.int64, "Int": torch.int32, "Byte": torch.uint8, "Bool": torch.bool,
}  # fmt: skip
globals().update({f"{name}Tensor": _TypeMeta(f"{name}Tensor", (), {"dtype": dtype}) for name, dtype in _TYPES.items()})
