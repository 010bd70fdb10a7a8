"""Transfers between processes that arrive only when they are waited for, as on a device whose transfers have a stream of their own.

Until then the receiver's tensor holds NaN (or the largest integer). Whoever reads too early gets that, every time and not only in a race.
A sender that changes or drops a tensor before the transfer is done is caught too. Collectives that the caller waits for anyway
(async_op=False) only start from such a tensor. Collectives inside torch's _coalescing_manager, in which megatron.core gathers weights and
reduces gradients, land together when the manager is waited for.
"""

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from copy import copy
from dataclasses import dataclass, field
from functools import partial
from itertools import product
from typing import Any, Optional
from unittest import mock

import torch
from torch.distributed import distributed_c10d

_INTO = ("all_gather_into_tensor", "all_to_all_single", "reduce_scatter_tensor")
"""Collectives with an output and an input."""
_TAKEN = {
    "dist_all_gather_func": "all_gather_into_tensor",
    "dist_reduce_scatter_func": "reduce_scatter_tensor",
    "_coalescing_manager": "_coalescing_manager",
}
"""Functions of torch.distributed that modules of weights and gradients took when they were imported, by their name there."""


@dataclass
class Transfers:
    """How many were started, those that nobody waited for so far, and what happened to tensors that were still to be sent."""

    raises: bool = True
    """Whether such a tensor is an error at once; the other ranks may then wait for this one for ever."""
    started: int = 0
    pending: set[HeldWork] = field(default_factory=set)
    problems: list[str] = field(default_factory=list)

    def complain(self, problem: str) -> None:
        """Notes a problem.

        Raises:
            AssertionError: it is an error at once.
        """
        self.problems.append(problem)
        assert not self.raises, problem

    def finish(self) -> None:
        """Ends what nobody waited for: gloo hangs where a handle is dropped before."""
        for work in self.pending:
            work.end()


class HeldWork:
    """Stands where torch's handle stands; the received data lands in wait().

    Args:
        work: torch's handle.
        log: where the transfer is noted.
        landings: (where data is expected, where it really arrives).
        sent: what is being sent, and a copy of it.
    """

    def __init__(
        self,
        work: Any,
        log: Transfers,
        *,
        landings: Sequence[tuple[torch.Tensor, torch.Tensor]] = (),
        sent: Optional[tuple[weakref.ref[torch.Tensor], torch.Tensor]] = None,
    ) -> None:
        self._work, self._log, self._landings, self._sent = work, log, landings, sent
        self._done = False
        log.started += 1
        log.pending.add(self)

    def end(self) -> None:
        """Waits for the real transfer; nothing lands."""
        self._work.wait()

    def wait(self, timeout: Any = None) -> bool:
        """Waits, and lets the data land."""
        if not self._done:
            self.end()
            self._done = True
            self._log.pending.discard(self)
            with torch.no_grad():
                for place, arrived in self._landings:
                    place.copy_(arrived)
            if self._sent is not None:
                tensor, content = self._sent[0](), self._sent[1]
                if tensor is None:
                    self._log.complain("a tensor was dropped before it was sent")
                elif not torch.equal(tensor.nan_to_num(), content.nan_to_num()):
                    self._log.complain("a tensor was changed before it was sent")
        return True

    def is_completed(self) -> bool:
        """Whether it was waited for."""
        return self._done


def poison(tensor: torch.Tensor) -> None:
    """Fills a tensor with what no result may contain."""
    with torch.no_grad():
        tensor.fill_(float("nan") if tensor.is_floating_point() else torch.iinfo(tensor.dtype).max)


def hold(log: Transfers) -> dict[str, Callable[..., Any]]:
    """Stand-ins for functions of torch.distributed, by name."""
    isend, irecv = distributed_c10d.isend, distributed_c10d.irecv
    joining = distributed_c10d._coalescing_manager
    blocking = {name: getattr(distributed_c10d, name) for name in ("all_reduce", *_INTO)}
    joined: dict[Any, list[tuple[torch.Tensor, torch.Tensor]]] = {}
    """Landings of the collectives inside a _coalescing_manager, by group; their handle is the manager's."""

    def started(work: Any, place: torch.Tensor, arrived: torch.Tensor, group: Any) -> Any:
        poison(place)
        group = group or distributed_c10d._get_default_group()
        if group in joined:
            joined[group].append((place, arrived))
            return work
        return HeldWork(work, log, landings=[(place, arrived)])

    @contextmanager
    def coalescing_manager(group: Any = None, device: Any = None, async_ops: bool = False) -> Iterator[Any]:
        key = group or distributed_c10d._get_default_group()
        if async_ops:
            joined[key] = []
        try:
            with joining(group, device, async_ops) as manager:
                yield manager
        finally:
            landings = joined.pop(key, [])
        if landings:
            manager.works = [HeldWork(copy(manager), log, landings=landings)]

    def batch_isend_irecv(operations: Sequence[Any]) -> list[HeldWork]:
        assert operations, "HCCL has no empty batch"
        works = []
        for step in operations:
            if step.op is isend:
                content = step.tensor.detach().clone()  # gloo gets a copy: it hangs where a mutant drops what it still sends
                works.append(HeldWork(isend(content, step.peer, step.group, step.tag), log, sent=(weakref.ref(step.tensor), content)))
            else:
                assert step.op is irecv, step.op
                arrived = torch.empty_like(step.tensor)
                work = irecv(arrived, step.peer, step.group, step.tag)
                poison(step.tensor)
                works.append(HeldWork(work, log, landings=[(step.tensor, arrived)]))
        return works

    def into(name: str, output: torch.Tensor, given: torch.Tensor, *arguments: Any, async_op: bool = False, **options: Any) -> Any:
        given = given.detach().clone()  # it may lie inside the output, as megatron.core gathers weights, or the output inside it
        if not async_op:
            poison(output)
            return blocking[name](output, given, *arguments, **options)
        arrived = torch.empty_like(output)
        work = blocking[name](arrived, given, *arguments, async_op=True, **options)
        return started(work, output, arrived, options.get("group"))

    def all_reduce(tensor: torch.Tensor, *arguments: Any, async_op: bool = False, **options: Any) -> Any:
        if not async_op:
            return blocking["all_reduce"](tensor, *arguments, **options)
        arrived = tensor.detach().clone()
        work = blocking["all_reduce"](arrived, *arguments, async_op=True, **options)
        return started(work, tensor, arrived, options.get("group"))

    return {
        "batch_isend_irecv": batch_isend_irecv,
        "all_reduce": all_reduce,
        "_coalescing_manager": coalescing_manager,
        **{name: partial(into, name) for name in _INTO},
    }


def _places(log: Transfers) -> Iterator[tuple[Any, str, Any]]:
    """(module, name, stand-in) of every function to replace, also where megatron took it when it was imported."""
    stand_ins = hold(log)
    for name, function in stand_ins.items():
        yield torch.distributed, name, function
    takers = [module for name, module in sys.modules.items() if name.split(".")[0] in ("megatron", "mindspeed", "mindspeed_llm")]
    for module, (name, original) in product(takers, _TAKEN.items()):
        if name in vars(module):
            yield module, name, stand_ins[original]


@contextmanager
def held() -> Iterator[Transfers]:
    """Holds back what this process transfers meanwhile."""
    log = Transfers(raises=False)
    with ExitStack() as stack:
        stack.callback(log.finish)
        for module, name, function in list(_places(log)):
            stack.enter_context(mock.patch.object(module, name, function))
        yield log


def hold_for_good() -> Transfers:
    """Holds back what this process transfers from now on."""
    log = Transfers()
    for module, name, function in list(_places(log)):
        setattr(module, name, function)
    return log
