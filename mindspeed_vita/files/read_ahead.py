"""Makes groups of tensors in a thread, ahead of what uses them, within the memory of the largest group."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Optional

import torch

from mindspeed_vita.files.tensors import Group


def read_ahead(groups: Sequence[Group], wanted: Callable[[str], bool]) -> Iterator[tuple[str, torch.Tensor]]:
    """Names and tensors, in order. The next group is made early only where it and those in use are no larger than the largest group.

    Args:
        groups: makes the tensors.
        wanted: says for a name whether its tensor is of use; others of its group are made and dropped.

    Raises:
        Whatever making a tensor raises, at its place.
    """
    budget = max((group.nbytes for group in groups), default=0)
    ahead = _Ahead([group for group in groups if any(map(wanted, group.specs))], budget)
    thread = threading.Thread(target=ahead.work, name="vita-read", daemon=True)
    thread.start()
    try:
        while (found := ahead.take()) is not None:
            if wanted(found[0]):
                yield found
            del found  # before the next one is waited for
    finally:
        ahead.stop()
        thread.join()


class _Ahead:
    def __init__(self, groups: Sequence[Group], budget: int) -> None:
        self._groups = groups
        self._budget = budget
        self._changed = threading.Condition()
        self._ready: deque[tuple[str, torch.Tensor]] = deque()
        self._in_use = 0
        """Bytes of groups that were begun and not used up."""
        self._last = 0
        """Bytes of the tensor that was taken last; it counts as in use until the next is taken."""
        self._ended = False
        self._stopped = False
        self._error: Optional[BaseException] = None

    def work(self) -> None:
        """The thread."""
        try:
            for group in self._groups:
                with self._changed:
                    self._changed.wait_for(partial(self._may_make, group.nbytes))
                    if self._stopped:
                        return
                    self._in_use += group.nbytes
                for name, tensor in zip(group.specs, group.make(), strict=True):
                    with self._changed:
                        self._ready.append((name, tensor))
                        self._changed.notify_all()
                    del tensor
        except BaseException as error:  # noqa: BLE001  raised where the tensor is taken
            self._error = error
        finally:
            with self._changed:
                self._ended = True
                self._changed.notify_all()

    def _may_make(self, nbytes: int) -> bool:
        return self._stopped or self._in_use == 0 or self._in_use + nbytes <= self._budget

    def take(self) -> Optional[tuple[str, torch.Tensor]]:
        """The next tensor, or None after the last."""
        with self._changed:
            self._in_use -= self._last
            self._last = 0
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._ready or self._ended)
            if not self._ready:
                if self._error is not None:
                    raise self._error
                return None
            name, tensor = self._ready.popleft()
            self._last = tensor.numel() * tensor.element_size()
            return name, tensor

    def stop(self) -> None:
        """Ends the thread after the tensor it is at."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
