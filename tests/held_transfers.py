"""Transfers between processes that arrive only when they are waited for, as on a device whose transfers have a stream of their own.

Until then the receiver's tensor holds NaN (or the largest integer). Whoever reads too early gets that, every time and not only in a race.
A sender that changes or drops a tensor before the transfer is done is caught too. Collectives that the caller waits for anyway
(async_op=False) only start from such a tensor.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Optional

import torch
from torch.distributed import distributed_c10d


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
    """Stands where torch's handle stands; the received data lands in wait()."""

    def __init__(
        self,
        work: Any,
        log: Transfers,
        *,
        place: Optional[torch.Tensor] = None,
        arrived: Optional[torch.Tensor] = None,
        sent: Optional[tuple[weakref.ref[torch.Tensor], torch.Tensor]] = None,
    ) -> None:
        self._work, self._log, self._place, self._arrived, self._sent = work, log, place, arrived, sent
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
            if self._place is not None:
                with torch.no_grad():
                    self._place.copy_(self._arrived)  # type: ignore[arg-type]
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
    blocking = {name: getattr(distributed_c10d, name) for name in ("all_reduce", "all_gather_into_tensor", "all_to_all_single")}

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
                works.append(HeldWork(work, log, place=step.tensor, arrived=arrived))
        return works

    def into(name: str, output: torch.Tensor, given: torch.Tensor, *arguments: Any, async_op: bool = False, **options: Any) -> Any:
        given = given.detach().clone()  # what is sent may lie inside the output, as megatron.core gathers parameters
        if not async_op:
            poison(output)
            return blocking[name](output, given, *arguments, **options)
        arrived = torch.empty_like(output)
        work = blocking[name](arrived, given, *arguments, async_op=True, **options)
        poison(output)
        return HeldWork(work, log, place=output, arrived=arrived)

    def all_reduce(tensor: torch.Tensor, *arguments: Any, async_op: bool = False, **options: Any) -> Any:
        if not async_op:
            return blocking["all_reduce"](tensor, *arguments, **options)
        arrived = tensor.detach().clone()
        work = blocking["all_reduce"](arrived, *arguments, async_op=True, **options)
        poison(tensor)
        return HeldWork(work, log, place=tensor, arrived=arrived)

    return {
        "batch_isend_irecv": batch_isend_irecv,
        "all_reduce": all_reduce,
        "all_gather_into_tensor": lambda *arguments, **options: into("all_gather_into_tensor", *arguments, **options),
        "all_to_all_single": lambda *arguments, **options: into("all_to_all_single", *arguments, **options),
    }


@contextmanager
def held() -> Iterator[Transfers]:
    """Holds back what this process transfers meanwhile."""
    log = Transfers(raises=False)
    saved = {name: getattr(torch.distributed, name) for name in hold(log)}
    for name, function in hold(log).items():
        setattr(torch.distributed, name, function)
    try:
        yield log
    finally:
        for name, function in saved.items():
            setattr(torch.distributed, name, function)
        log.finish()
