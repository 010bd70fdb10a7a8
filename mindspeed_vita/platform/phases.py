"""Names for the parts of a training step, for a profiler's trace and for the clock of a step. Without either, a phase costs little."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Literal, Optional, get_args

import torch

Phase = Literal["data", "tower", "tower backward", "exchange", "layers", "layers backward", "ring", "head", "optimizer"]
"""data: the next pack, read and cut for this rank. tower: tiles through tower and projector. exchange: an all-to-all between ranks, of
vision rows or of Ulysses' heads. layers: this stage's decoder layers; what they recompute lies in layers backward. ring: attention of the
decoder with its transfers. head: logits and loss. optimizer: the update. exchange, ring and head have one name in both passes."""
PHASES: tuple[Phase, ...] = get_args(Phase)
PREFIX = "vita."
"""In front of the name of each range in a trace."""
_NOTHING: AbstractContextManager[Any] = nullcontext()
Timer = Callable[[], AbstractContextManager[Any]]
"""Makes what times one range."""
_recording = False
_timers: Mapping[str, Timer] = {}


def phase(name: Phase) -> AbstractContextManager[Any]:
    """A range of a step: in a trace while a step is recorded, and timed inside of `timed`; otherwise nothing."""
    timer = _timers.get(name)
    if not _recording:
        return _NOTHING if timer is None else timer()
    return _recorded(name, timer or nullcontext)


@contextmanager
def _recorded(name: Phase, timer: Timer) -> Iterator[None]:
    with torch.profiler.record_function(PREFIX + name), timer():
        yield


def name_backward(name: Phase, output: torch.Tensor, first_input: Optional[torch.Tensor] = None) -> None:
    """Names a part of the backward pass while a step is recorded: from the gradient of an output to that of the part's first input.

    Args:
        name: of the range.
        output: what the part made.
        first_input: what it was made of; None, or without a gradient: the range ends with the backward pass.
    """
    if not _recording or not output.requires_grad:
        return
    running: list[AbstractContextManager[Any]] = []

    def begin(gradient: torch.Tensor) -> None:
        running.append(torch.profiler.record_function(PREFIX + name))
        running[0].__enter__()
        torch.autograd.Variable._execution_engine.queue_callback(end)  # type: ignore[attr-defined]

    def end(*_: torch.Tensor) -> None:
        if running:
            running.pop().__exit__(None, None, None)

    output.register_hook(begin)
    if first_input is not None and first_input.requires_grad:
        first_input.register_hook(end)


@contextmanager
def timed(timers: Mapping[str, Timer]) -> Iterator[None]:
    """Inside of the block each range of a phase that has a timer is timed by it."""
    global _timers
    before, _timers = _timers, timers
    try:
        yield
    finally:
        _timers = before


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
