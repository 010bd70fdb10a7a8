"""Ranks that save or load together: a failure on one is the same error on all, instead of a wait without end on the others."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, NoReturn, Optional

import torch.distributed as dist

from mindspeed_vita.checkpoint.native.step_folder import latest
from mindspeed_vita.files.publish import Published
from mindspeed_vita.files.write_fault import one_line, save_advice

_PATIENCE = timedelta(days=7)


class SaveFailed(OSError):
    """A step could not be written; what was there before is untouched."""


Reason = tuple[str, str]
"""What kind of failure (refused, published or failed), and its message. That of failed ends in what to do."""


def reason_of(error: Exception) -> Reason:
    """What other ranks are told of a failure."""
    if isinstance(error, Published):
        return "published", str(error)
    if isinstance(error, ValueError):
        return "refused", str(error)
    if isinstance(error, OSError):
        room = save_advice(error)
        return "failed", f"{error}; {f'{room} or ' if room else ''}choose another checkpoint.directory"
    return "failed", f"{type(error).__name__}: {error}; start again"


def fail(directory: str | Path, reason: Reason, cause: Optional[Exception] = None) -> NoReturn:
    """Raises what a rank was told: a ValueError, Published, or SaveFailed."""
    kind, message = reason
    if kind == "refused":
        raise ValueError(message) from cause
    if kind == "published":
        raise Published(message) from cause
    newest = latest(directory)
    kept = f"earlier checkpoints are untouched (newest: {newest.name})" if newest else "there is no earlier checkpoint"
    raise SaveFailed(f"cannot save into {directory}: {message}; {kept}") from cause


@contextmanager
def together(directory: str | Path) -> Iterator[None]:
    """Ends in the same SaveFailed on every rank when any of them meets an OSError, or in the same Published."""
    error: Optional[OSError] = None
    try:
        yield
    except OSError as caught:
        error = caught
    reasons = [reason for reason in gather(None if error is None else reason_of(error)) if reason]
    if reasons:
        fail(directory, reasons[0], error)


def rank() -> int:
    """This process's rank; 0 outside a process group."""
    return dist.get_rank() if dist.is_initialized() else 0


def world() -> int:
    """Processes; 1 outside a process group."""
    return dist.get_world_size() if dist.is_initialized() else 1


def gather(value: Any) -> list[Any]:
    """The value of every rank, on every rank."""
    if world() == 1:
        return [value]
    values: list[Any] = [None] * world()
    dist.all_gather_object(values, value)
    return values


def gather_patiently(value: Any) -> list[Any]:
    """As gather, where ranks may come hours apart, as each fetched files: they wait on the group's store, as collectives would time out."""
    if world() > 1:
        store = dist.distributed_c10d._get_default_store()
        turn = f"vita/patient/{store.add(f'vita/patient/turns/{rank()}', 1)}"
        if store.add(f"{turn}/here", 1) == world():
            store.set(f"{turn}/all", "")
        store.wait([f"{turn}/all"], _PATIENCE)
    return gather(value)


def on_first_rank(work: Callable[[], None]) -> None:
    """Rank 0 does something; where it fails for a user's fault or the file system's, every rank fails with its message. Collective.

    Raises:
        ValueError: rank 0 met a ValueError or an OSError.
    """
    error: Optional[Exception] = None
    if rank() == 0:
        try:
            work()
        except (ValueError, OSError) as caught:
            error = caught
    reason = gather("" if error is None else one_line(error))[0]
    if reason:
        raise ValueError(reason) from error
