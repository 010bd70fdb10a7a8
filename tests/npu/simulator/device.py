"""A working `npu` device without a chip: memory, views and fused kernels' argument checks are torch_npu's own, arithmetic is the host's.

Device memory is host memory (see acl.c), so every operation on npu tensors can be done on host tensors over the same bytes. What
torch_npu's C++ does without a kernel (allocation, views, autograd formulas) stays with it.
"""

from __future__ import annotations

import ctypes
import traceback
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Callable, Iterator, Optional

import torch
from torch._subclasses import FakeTensor
from torch.utils._python_dispatch import TorchDispatchMode

from tests.npu.simulator.host import SUBSTITUTES

Kernel = Callable[[dict[str, Any], "Ascend"], tuple[Optional[torch.Tensor], ...]]
KERNELS: dict[str, Kernel] = {}
"""Arithmetic of the fused operators by name, over host tensors; an output may be None where torch_npu returns nothing of use."""

_OWN = {
    f"aten::{name}"
    for name in ("_pin_memory", "alias", "detach", "empty_strided", "is_pinned", "lift_fresh", "record_stream", "resize_", "set_")
}
"""Operators that need no kernel: torch_npu's own code runs."""
_MAY_MIX_DEVICES = {"aten::copy_", "aten::index", "aten::index_put_", "aten::_index_put_impl_"}
_WAITED_FOR = {f"aten::{name}" for name in ("_local_scalar_dense", "equal", "is_nonzero", "masked_select", "nonzero", "_unique2")}
"""Operators whose result, or its size, the host must know."""
_PHILOX_STEP = 4


@dataclass(frozen=True)
class Call:
    """One call of a fused operator."""

    name: str
    arguments: dict[str, Any]
    """By name, defaults filled in; a tensor as its (shape, dtype)."""


@dataclass(frozen=True)
class Copy:
    """Bytes that travelled between host and chip, or a number that the host waited for."""

    operator: str
    to_device: bool
    """False: to the host, which waits."""
    waits: bool
    """Whether the host goes on only when the copy is done."""
    shape: tuple[int, ...]
    where: str
    """The innermost line of the package or of megatron that asked for it."""


class Ascend(TorchDispatchMode):
    """The simulated chip: enter it once, for good.

    Attributes:
        calls: fused operators called so far.
        copies: what was copied so far.
        honours_softmax_layout: False: as CANN before 8.3, which returns statistics in NTD order whatever is asked for.
    """

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Call] = []
        self.copies: list[Copy] = []
        self._runtime = ctypes.CDLL("libascendcl.so")
        self.honours_softmax_layout = True

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Optional[dict[str, Any]] = None) -> Any:
        kwargs = kwargs or {}
        tensors = _tensors((args, kwargs))
        device = _device(tensors, kwargs.get("device"))
        if device is None or any(isinstance(tensor, FakeTensor) for tensor in tensors):
            return func(*args, **kwargs)
        name = func._schema.name
        self._note_copy(name, args, kwargs)
        if name in _OWN or func.is_view:
            return func(*args, **kwargs)
        if name == "aten::empty":
            return _poisoned(func(*args, **kwargs))
        if name == "aten::_to_copy":
            return _converted(func, args[0], kwargs)
        if not name.startswith("c10d::") and name not in _MAY_MIX_DEVICES:
            _check_devices(name, tensors, device)
        if func.namespace == "npu":
            return self._fused(func, name.removeprefix("npu::"), args, kwargs)
        return _on_host(func, args, kwargs, device)

    def copies_inside(self) -> int:
        """Copies to the device that torch_npu made by itself so far, such as torch.tensor's, which no dispatch shows."""
        return int(self._runtime.vita_copies(1))

    def _note_copy(self, name: str, args: Any, kwargs: dict[str, Any]) -> None:
        by_mask = name in _MAY_MIX_DEVICES and any(tensor.dtype == torch.bool for tensor in _tensors(args[1:2]))
        if name in _WAITED_FOR or (name != "aten::copy_" and by_mask):
            self.copies.append(Copy(name, False, True, tuple(args[0].shape), _asked_by()))
            return
        if name == "aten::_to_copy":
            source, target, waits = args[0], torch.device(kwargs.get("device") or args[0].device), not kwargs.get("non_blocking")
        elif name == "aten::copy_":
            source, target, waits = args[1], args[0].device, not (args[2] if len(args) > 2 else kwargs.get("non_blocking"))
        else:
            return
        if source.device.type != target.type:
            to_device = target.type == "npu"
            waits = waits or (to_device and not source.is_pinned())
            self.copies.append(Copy(name, to_device, waits, tuple(source.shape), _asked_by()))

    def _fused(self, func: Any, name: str, args: Any, kwargs: dict[str, Any]) -> Any:
        if name in ("npu_format_cast", "npu_format_cast_"):
            return args[0]  # formats are the chip's own business
        if name not in KERNELS:
            raise NotImplementedError(f"the simulated Ascend has no {name}")
        schema = func._schema.arguments
        arguments = {argument.name: argument.default_value for argument in schema if argument.has_default_value()}
        arguments.update(zip((argument.name for argument in schema), args), **kwargs)
        self.calls.append(Call(name, _map(lambda tensor: (tuple(tensor.shape), tensor.dtype), arguments)))
        allocated = func(*args, **kwargs)  # torch_npu checks the arguments and allocates; its kernel computes nothing
        computed = KERNELS[name](_map(_host_argument, arguments), self)
        outputs = allocated if isinstance(allocated, (tuple, list)) else (allocated,)
        for number, (place, value) in enumerate(zip(outputs, computed)):
            if value is not None:
                found, wanted = (tuple(place.shape), place.dtype), (tuple(value.shape), value.dtype)
                assert found == wanted, f"{name}: output {number} is {found} in torch_npu and {wanted} here"
                host_view(place).copy_(value)
        return allocated


def _asked_by() -> str:
    """File and line, for a message; "" for what the simulation itself asks for."""
    stack = traceback.extract_stack(limit=40)
    if any(frame.filename.endswith("tests/held_transfers.py") for frame in stack):
        return ""
    asking = [frame for frame in stack if "/mindspeed_vita/" in frame.filename or "/megatron/" in frame.filename]
    found = [frame for frame in asking if not frame.filename.endswith("redirect.py")]  # it stands around torch's own functions
    return "/".join(found[-1].filename.split("/")[-2:]) + f":{found[-1].lineno}" if found else "elsewhere"


def host_view(tensor: torch.Tensor) -> torch.Tensor:
    """A host tensor over the memory of a simulated one; it keeps that memory alive."""
    storage = tensor.untyped_storage()
    size = storage.nbytes()
    if not size:
        return torch.empty_strided(tensor.size(), tensor.stride(), dtype=tensor.dtype)
    memory = (ctypes.c_char * size).from_address(storage.data_ptr())
    memory.owner = tensor
    flat = torch.frombuffer(memory, dtype=torch.uint8).untyped_storage()
    return torch.empty(0, dtype=tensor.dtype).set_(flat, tensor.storage_offset(), tensor.size(), tensor.stride())


def _host_argument(tensor: torch.Tensor) -> torch.Tensor:
    """A fused operator's argument; remembers where it lay, since some arguments must lie on the device."""
    view = host_view(tensor) if tensor.device.type == "npu" else tensor.view_as(tensor)
    view.simulated = tensor  # type: ignore[attr-defined]
    return view


def to_device(host: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A copy on a simulated device, with the same strides."""
    placed = torch.empty_strided(host.size(), host.stride(), dtype=host.dtype, device=device)
    if host.numel():
        host_view(placed).copy_(host)
    return placed


def _on_host(func: Any, args: Any, kwargs: dict[str, Any], device: torch.device) -> Any:
    views: dict[int, torch.Tensor] = {}

    def view(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.device.type != "npu":
            return tensor
        if id(tensor) not in views:
            views[id(tensor)] = host_view(tensor)
            originals.append((tensor, views[id(tensor)]))
        return views[id(tensor)]

    originals: list[tuple[torch.Tensor, torch.Tensor]] = []
    host_args, host_kwargs = _map(view, args), _map(view, kwargs)
    if "device" in host_kwargs:
        host_kwargs["device"] = torch.device("cpu")
        host_kwargs.pop("pin_memory", None)
    compute = SUBSTITUTES.get(func._schema.name, func)
    if torch.Tag.nondeterministic_seeded in func.tags:
        with _device_random(device, host_kwargs.pop("generator", None)):
            result = compute(*host_args, **host_kwargs)
    else:
        result = compute(*host_args, **host_kwargs)

    def back(host: torch.Tensor) -> torch.Tensor:
        for original, seen in originals:
            if seen is host:
                return original
        memory = host.untyped_storage().data_ptr()
        for original, seen in originals:  # a view that the schema does not declare, such as _unsafe_view
            if host.numel() and seen.untyped_storage().data_ptr() == memory:
                return torch.as_strided(original, host.size(), host.stride(), host.storage_offset())
        return to_device(host, device) if host.device.type == "cpu" else host

    return _map(back, result)


def _converted(func: Any, tensor: torch.Tensor, kwargs: dict[str, Any]) -> torch.Tensor:
    """Tensor.to: another dtype, another device, or both; always a copy."""
    target = torch.device(kwargs.get("device") or tensor.device)
    options = {name: value for name, value in kwargs.items() if name not in ("device", "pin_memory", "non_blocking")}
    host = func(host_view(tensor) if tensor.device.type == "npu" else tensor, **options)
    if target.type != "npu":
        return host
    return to_device(host, target if target.index is not None else torch.device("npu", torch.npu.current_device()))


@contextmanager
def _device_random(device: torch.device, generator: Optional[torch.Generator]) -> Iterator[None]:
    """Random numbers from the device's own generator, whose state is a seed and an offset that every draw moves on."""
    if generator is not None and generator.device.type != "npu":
        raise RuntimeError(f"Expected a 'npu' device type for generator but found '{generator.device.type}'")
    source = generator or torch.npu.default_generators[device.index]
    state = source.get_state()
    seed, offset = state.view(torch.int64).tolist()
    host, saved = torch.default_generator, torch.default_generator.get_state()
    host.manual_seed((seed * 1_000_003 + offset) % 2**63)
    try:
        yield
    finally:
        host.set_state(saved)
        state.view(torch.int64)[1] += _PHILOX_STEP
        source.set_state(state)


def _poisoned(tensor: torch.Tensor) -> torch.Tensor:
    """Fresh memory is not zero: who reads it before writing gets NaN."""
    if tensor.is_floating_point() and tensor.numel():
        host_view(tensor).fill_(float("nan"))
    return tensor


def _check_devices(name: str, tensors: list[torch.Tensor], device: torch.device) -> None:
    for tensor in tensors:
        if tensor.device != device and not (tensor.device.type == "cpu" and tensor.dim() == 0):
            raise RuntimeError(f"Expected all tensors to be on the same device, but {name} got {tensor.device} and {device}")


def _device(tensors: list[torch.Tensor], wanted: Any) -> Optional[torch.device]:
    """The simulated device that an operator works on; None if it is another kind of device's business."""
    for tensor in tensors:
        if tensor.device.type == "npu":
            return tensor.device
    if wanted is None or torch.device(wanted).type != "npu":
        return None
    device = torch.device(wanted)
    return device if device.index is not None else torch.device("npu", torch.npu.current_device())


def _tensors(value: Any) -> list[torch.Tensor]:
    found: list[torch.Tensor] = []
    _map(found.append, value)
    return found


def _map(change: Callable[[torch.Tensor], Any], value: Any) -> Any:
    """Applies a function to every tensor of nested lists, tuples and dicts."""
    if isinstance(value, torch.Tensor):
        return change(value)
    if isinstance(value, (list, tuple)):
        return type(value)([_map(change, item) for item in value])
    if isinstance(value, dict):
        return {key: _map(change, item) for key, item in value.items()}
    return value
