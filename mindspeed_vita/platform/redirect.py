"""Sends the CUDA calls of unmodified megatron.core to another device. Used by cpu.py and npu.py; called explicitly, never on import.

Only calls that ask for CUDA by name change their meaning, and on such a machine those could only fail. patches/manifest.toml names
every attribute that is set here.
"""

from __future__ import annotations

import functools
import sys
from typing import Any, Callable, Optional, Protocol

import torch

_FACTORIES = ("tensor", "zeros", "ones", "empty", "full", "arange", "randn", "empty_like", "zeros_like", "ones_like")
_target: Optional[torch.device] = None


class Generator(Protocol):
    """Where random state lives: torch.random for the host, torch.npu for an NPU."""

    def get_rng_state(self) -> torch.Tensor: ...

    def set_rng_state(self, new_state: torch.Tensor) -> None: ...

    def manual_seed(self, seed: int) -> Any: ...


class Runtime(Protocol):
    """Where streams live: torch.cpu, whose streams have nothing to wait for, or torch.npu."""

    def synchronize(self) -> None: ...

    def current_stream(self) -> Any: ...


def redirect_cuda(device: torch.device, generator: Generator, runtime: Runtime) -> None:
    """Make megatron.core's CUDA call sites mean `device`. A second call with the same device does nothing.

    Args:
        device: where the calls go.
        generator: source of random state for megatron.core's tracker.
        runtime: the torch module that owns the device's streams.

    Raises:
        RuntimeError: if another device was chosen earlier in this process.
    """
    global _target
    if _target is not None:
        if _target != device:
            raise RuntimeError(f"megatron.core already runs on {_target} in this process; start a new one for {device}")
        return
    _target = device
    _redirect_device(device, runtime)
    _redirect_factories(device)
    _redirect_tensors(device)
    _redirect_random(generator)


def _redirect_device(device: torch.device, runtime: Runtime) -> None:
    # current_device: the `device=` of every buffer in core's collectives, gradient buffers and pipeline receives
    torch.cuda.current_device = lambda: device  # type: ignore[return-value]
    # set_device: called by core's checkpoint workers
    torch.cuda.set_device = lambda *args, **kwargs: None
    # synchronize: after pipeline sends and before checkpoint writes
    torch.cuda.synchronize = lambda *args, **kwargs: runtime.synchronize()
    # current_stream: from 0.19 on, asked for before each gradient reduction to wait for CUDA graphs, of which there are none
    torch.cuda.current_stream = lambda *args, **kwargs: runtime.current_stream()


def _redirect_factories(device: torch.device) -> None:
    # `with torch.device(...)` recognises factories by identity in a cached set: fill it before they are wrapped
    from torch.utils import _device

    _device._device_constructors()
    # device="cuda" literals: token counts in the schedules, norms in clip_grads, scales in the optimizer
    for name in _FACTORIES:
        setattr(torch, name, _on(getattr(torch, name), device))


def _on(factory: Callable[..., torch.Tensor], device: torch.device) -> Callable[..., torch.Tensor]:
    @functools.wraps(factory)
    def create(*args: Any, **kwargs: Any) -> torch.Tensor:
        if "device" in kwargs and _asks_for_cuda(kwargs["device"]):
            kwargs["device"] = device
            kwargs.pop("pin_memory", None)
        return factory(*args, **kwargs)

    return create


def _redirect_tensors(device: torch.device) -> None:
    move, move_module, type_name = torch.Tensor.to, torch.nn.Module.to, torch.Tensor.type

    @functools.wraps(type_name)
    def typed(self: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        result = type_name(self, *args, **kwargs)
        # core's optimizers sort parameters by `param.type() == "torch.cuda.FloatTensor"`; nobody else is told so
        if not args and not kwargs and sys._getframe(1).f_globals.get("__name__", "").startswith("megatron.core.optimizer"):
            return "torch.cuda." + result.rsplit(".", 1)[-1]
        return result

    @functools.wraps(move)
    def moved(self: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        if args and _asks_for_cuda(args[0]):
            args = (device, *args[1:])
        if "device" in kwargs and _asks_for_cuda(kwargs["device"]):
            kwargs["device"] = device
        return move(self, *args, **kwargs)

    # Tensor.to(device="cuda"), Tensor.cuda, Module.cuda: core's broadcast helpers and optimizer loading
    torch.Tensor.to = moved
    torch.Tensor.cuda = lambda self, *args, **kwargs: move(self, device)
    torch.nn.Module.cuda = lambda self, *args, **kwargs: move_module(self, device)
    torch.Tensor.type = typed


def _redirect_random(generator: Generator) -> None:
    def get_state(*args: Any, **kwargs: Any) -> torch.Tensor:
        return generator.get_rng_state()

    def set_state(new_state: torch.Tensor, *args: Any, **kwargs: Any) -> None:
        generator.set_rng_state(new_state)

    def manual_seed(seed: int) -> None:
        generator.manual_seed(seed)

    # the tensor-parallel random tracker seeds, reads and restores the generator through torch.cuda ...
    for module in (torch.cuda, torch.cuda.random):
        module.get_rng_state = get_state
        module.set_rng_state = set_state
        module.manual_seed = manual_seed
    # ... and through two functions of its own that reach into CUDA's C bindings
    import megatron.core.tensor_parallel.random as tracker

    tracker._get_cuda_rng_state = get_state
    tracker._set_cuda_rng_state = set_state


def _asks_for_cuda(device: Any) -> bool:
    return (isinstance(device, str) and device.startswith("cuda")) or (isinstance(device, torch.device) and device.type == "cuda")
