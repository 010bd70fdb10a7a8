"""Names for the parts of a training step in a profiler's trace. Outside of a profiler's window a phase costs one look at a flag."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Literal, get_args

import torch

Phase = Literal["data", "tower", "exchange", "ring", "head", "optimizer"]
"""data: the next pack, read and cut for this rank. tower: tiles through tower and projector, forward. exchange: an all-to-all between
ranks, of vision rows or of Ulysses' heads. ring: attention of the decoder with its transfers. head: logits and loss. optimizer: the
update. exchange, ring and head are named in the backward pass too."""
PHASES: tuple[Phase, ...] = get_args(Phase)
PREFIX = "vita."
"""In front of the name of each range in a trace."""
_NOTHING: AbstractContextManager[Any] = nullcontext()
_recording = False


def phase(name: Phase) -> AbstractContextManager[Any]:
    """A range of a trace, named after a phase, while a step is recorded; otherwise nothing."""
    return torch.profiler.record_function(PREFIX + name) if _recording else _NOTHING


@contextmanager
def recording(step: int) -> Iterator[None]:
    """Names the phases of the block, and the block itself by the number of its step. Call it while a profiler runs."""
    global _recording
    _recording = True
    try:
        with torch.profiler.record_function(f"{PREFIX}step {step}"):
            yield
    finally:
        _recording = False
