"""The packs of a step as the chunks of a stage take them: in an interleaved pipeline each chunk goes through all of them."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import Any, Generic, TypeVar

_T = TypeVar("_T")


class ChunkPasses(Generic[_T]):
    """Things that are asked for once, by the first chunk, and held until the last chunk has taken them.

    Args:
        source: of the things.
        chunks: of this stage; each takes all things in their order.
    """

    def __init__(self, source: Iterable[_T], chunks: int) -> None:
        self._source = iter(source)
        self._waiting: list[deque[_T]] = [deque() for _ in range(chunks)]

    def take(self, chunk: int) -> _T:
        """The next thing for a chunk."""
        if chunk == 0:
            thing = next(self._source)
            for later in self._waiting[1:]:
                later.append(thing)
            return thing
        return self._waiting[chunk].popleft()


def chunk_of(model: Any) -> int:
    """The number of a chunk on its stage, whatever wraps its model."""
    while not hasattr(model, "vp_stage"):
        model = model.module
    return model.vp_stage or 0
