"""Copies over a stream of their own, on a device whose streams do nothing until someone waits: what is read too early is not there yet."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Optional

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from mindspeed_vita.models.layer_inputs import LayerInputs
from mindspeed_vita.platform.host_copies import PinnedCopies, PlainCopies, host_copies


class LazyStream:
    """Does its work when the main stream waits for it."""

    def __init__(self, device: Any = None) -> None:
        self.work: list[Callable[[], Any]] = []
        self.waited_for: list[LazyStream] = []

    def wait_stream(self, other: LazyStream) -> None:
        self.waited_for.append(other)

    def record_event(self) -> Callable[[], None]:
        reached = len(self.work)

        def happen() -> None:
            for number in range(reached):
                self.work[number]()
                self.work[number] = lambda: None

        return happen

    def wait_event(self, event: Callable[[], None]) -> None:
        event()


class LazyDevice(TorchDispatchMode):
    """A device module, and the mode in which copies go to its current stream."""

    Stream = LazyStream

    def __init__(self) -> None:
        super().__init__()
        self.main = LazyStream()
        self.side: Optional[LazyStream] = None
        self.pinned = 0
        self.recorded: list[torch.Tensor] = []

    def current_stream(self) -> LazyStream:
        return self.main

    @contextmanager
    def stream(self, stream: LazyStream) -> Iterator[None]:
        self.side = stream
        yield
        self.side = None

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        self.pinned += bool(kwargs.pop("pin_memory", False))
        if func is torch.ops.aten.copy_.default and self.side is not None:
            self.side.work.append(lambda: func(*args, **kwargs))
            return args[0]
        result = func(*args, **kwargs)
        return result.fill_(torch.nan) if func is torch.ops.aten.empty_like.default else result


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Iterator[LazyDevice]:
    made = LazyDevice()
    monkeypatch.setattr(torch, "get_device_module", lambda device: made)
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda tensor, stream: made.recorded.append(tensor))
    with made:
        yield made


def test_a_copy_is_there_once_it_was_waited_for(device: LazyDevice) -> None:
    copies = PinnedCopies(torch.device("cpu"))
    tensor = torch.arange(6.0)
    host = copies.to_host(tensor)
    into = torch.empty_like(tensor)
    wait = copies.fetch(host, into)
    assert into.isnan().all() and device.pinned == 1
    wait()
    assert torch.equal(into, tensor)
    stream = copies._stream
    assert stream.waited_for == [device.main, device.main]  # what wrote the one, and who used the memory of the other
    assert [kept.data_ptr() for kept in device.recorded] == [tensor.data_ptr(), into.data_ptr()]


def test_inputs_of_layers_come_back_and_the_next_one_is_on_its_way(device: LazyDevice) -> None:
    copies = PinnedCopies(torch.device("cpu"))
    fetched: list[int] = []
    fetch = copies.fetch
    copies.fetch = lambda host, into: (fetched.append(len(fetched)), fetch(host, into))[1]  # type: ignore[method-assign]
    x = weight = torch.full((3,), 2.0, requires_grad=True)
    inputs = LayerInputs(copies)
    seen = []

    class Layer(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
            ctx.save_for_backward(x)
            return x * x

        @staticmethod
        def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:
            (saved,) = ctx.saved_tensors
            seen.append(len(fetched))
            return 2 * saved * grad

    for _ in range(3):
        with inputs.offloaded():
            x = Layer.apply(x)
    x.sum().backward()
    assert torch.equal(weight.grad, torch.full((3,), 8 * 2.0**7))
    assert seen == [2, 3, 3]  # its own and the one before; the first layer has none before it


def test_a_cpu_copies_at_once_and_other_devices_have_one_stream_each(device: LazyDevice) -> None:
    assert isinstance(host_copies(torch.device("cpu")), PlainCopies)
    npu = host_copies(torch.device("privateuseone", 0))
    assert isinstance(npu, PinnedCopies) and host_copies(torch.device("privateuseone", 0)) is npu
    host_copies.cache_clear()
