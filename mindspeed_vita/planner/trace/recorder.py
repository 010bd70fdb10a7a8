"""Follows every operator of a step: which memory it makes, the work it does, what it sends, and what the host reads.

Memory is counted by storage, so views count once. A storage is freed when its last tensor is gone, as in a real run.
"""

from __future__ import annotations

import weakref
from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any, Optional

import torch
from torch._C._distributed_c10d import FakeWork
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves, tree_map_only

from mindspeed_vita.planner.trace.collectives import Collective, collective
from mindspeed_vita.planner.trace.places import HOST, Place, Places
from mindspeed_vita.planner.trace.work import ATTENTION, flops

_READ = torch.ops.aten._local_scalar_dense.default
"""How .item(), float(), bool() and .tolist() read a number from a device."""

_WITHOUT_KERNEL = (
    torch.ops.c10d.allgather_into_tensor_coalesced_.default,
    torch.ops.c10d.reduce_scatter_tensor_coalesced_.default,
    torch.ops.c10d.allreduce_coalesced_.default,
)
"""Collectives that torch has no kernel of for tensors without memory. They change tensors in place and return a handle to wait for."""


class Recorder(TorchDispatchMode):
    """Stands on top of a FakeTensorMode.

    Outside of `host_work` every operator runs on tensors without memory. Inside, operators on host tensors alone compute
    their real results. A number that the host reads from a tensor without memory is 1 (True, 1, or 1.0), and is noted.

    Args:
        fake: the mode below.
        places: names the callers.
    """

    def __init__(self, fake: FakeTensorMode, places: Places) -> None:
        super().__init__()
        self._fake, self.caller = fake, places
        self._on_host = False
        self._storages: dict[int, tuple[Any, int]] = {}
        """By address: a weak reference, and the index of the change that made it; -1 for memory of the host."""
        self.on_host, self.peak_on_host = 0, 0
        """Bytes of what the step puts into host memory, now and at most."""
        self._place_ids: dict[Place, int] = {}
        self.changes, self.owners = array("q"), array("l")
        """Bytes that each allocation adds and each release takes, in order, and the number of the place that allocated them."""
        self.work: Counter[tuple[Place, bool]] = Counter()
        """FLOPs by place, and whether they are attention."""
        self.sent: Counter[tuple[Collective, str]] = Counter()
        """Bytes by collective and part of the step."""
        self.calls: Counter[tuple[Collective, str]] = Counter()
        """Number of calls, likewise."""
        self.communicators: dict[str, tuple[int, ...]] = {}
        """Process groups that were asked for a collective, and their ranks. While the model is built as well."""
        self.reads: Counter[str] = Counter()
        """Lines at which the host reads a number."""
        self.started = 0
        """How many changes of memory came before the step."""

    @property
    def places(self) -> list[Place]:
        """Places by number."""
        return list(self._place_ids)

    @contextmanager
    def host_work(self) -> Iterator[None]:
        """See the class."""
        before, self._on_host = self._on_host, True
        try:
            yield
        finally:
            self._on_host = before

    def name_setup(self, part: str) -> None:
        """Gives everything that is made from here on to a part, until `start`."""
        self.caller.setup = part

    def to_device(self, values: torch.Tensor) -> torch.Tensor:
        """A host tensor's stand-in on the device."""
        with _disable_current_modes():
            moved = self._fake.from_tensor(values)
        self._forget()
        self._note_memory(moved, lambda: Place("inputs", "forward", "", ""))
        return moved

    def start(self, model: torch.nn.Module) -> None:
        """A step of a model begins: counts of work, collectives and reads start anew; memory goes on."""
        self.caller.setup = ""
        self._own_weights(model)
        self.caller.follow(model)
        self.started = len(self.changes)
        for counter in (self.work, self.sent, self.calls, self.reads):
            counter.clear()

    def _own_weights(self, model: torch.nn.Module) -> None:
        """Gives weights their name. megatron's DDP, which makes the buffers of gradients, puts weights into a buffer of its own as well."""
        for parameter in model.parameters():
            _, made = self._storages[parameter.untyped_storage()._cdata]
            place = replace(self.places[self.owners[made]], part="weights")
            self.owners[made] = self._place_ids.setdefault(place, len(self._place_ids))

    def __torch_dispatch__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Optional[Mapping[str, Any]] = None) -> Any:
        kwargs = kwargs or {}
        if self._on_host and not any(isinstance(value, FakeTensor) for value in tree_leaves((args, kwargs))):
            with _disable_current_modes():
                return func(*args, **kwargs)
        if func is _READ:
            self.reads[self.caller.here().line] += 1
            return True if args[0].dtype is torch.bool else 1.0 if args[0].dtype.is_floating_point else 1
        result = FakeWork().boxed() if func in _WITHOUT_KERNEL else func(*args, **kwargs)
        self._forget()
        self._note_memory(result, self.caller.here)
        self._note_work(func, args, kwargs, result)
        return result

    def _forget(self) -> None:
        # the mode remembers every tensor by a weak reference, and torch refuses to convert a parameter that has one
        self._fake.fake_tensor_converter.meta_converter.tensor_memo.clear()

    def _note_memory(self, result: Any, place: Callable[[], Place]) -> None:
        for tensor in tree_leaves(result):
            if not isinstance(tensor, FakeTensor):
                continue
            storage = tensor.untyped_storage()
            address, size = storage._cdata, storage.nbytes()
            if address in self._storages or not size:
                continue
            where, freed = place(), partial(self._freed, address=address, size=size)
            if where.line.startswith(HOST):
                self._storages[address] = weakref.ref(storage, freed), -1
                self.on_host += size
                self.peak_on_host = max(self.peak_on_host, self.on_host)
                continue
            owner = self._place_ids.setdefault(where, len(self._place_ids))
            self._storages[address] = weakref.ref(storage, freed), len(self.changes)
            self._change(size, owner)

    def _freed(self, _: Any, *, address: int, size: int) -> None:
        _, made = self._storages.pop(address)
        if made < 0:
            self.on_host -= size
        else:
            self._change(-size, self.owners[made])

    def _change(self, size: int, owner: int) -> None:
        self.changes.append(size)
        self.owners.append(owner)

    def _note_work(self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], result: Any) -> None:
        if func.namespace == "c10d":
            found = collective(func, args)
            if found is not None:
                kind, size, communicator = found
                key = (kind, self.caller.here().part)
                self.communicators[communicator] = kind.ranks
                self.sent[key] += size
                self.calls[key] += 1
            return
        count = flops(func, args, kwargs, result)
        if count:
            self.work[self.caller.here(), func._overloadpacket in ATTENTION] += count


class ListsOfNumbers(TorchFunctionMode):
    """torch.tensor of a list of tensors reads their numbers below every dispatch mode. Here they are read before, one by one."""

    def __torch_function__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Optional[Mapping[str, Any]] = None) -> Any:
        if getattr(func, "__name__", "") == "tensor" and isinstance(args[0] if args else None, (list, tuple)):
            args = (tree_map_only(torch.Tensor, lambda number: number.item(), args[0]), *args[1:])
        return func(*args, **(kwargs or {}))
