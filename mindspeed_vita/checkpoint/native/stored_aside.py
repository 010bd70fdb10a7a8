"""Moves steps of a store out of a run's way that it did not write: those that it went back behind, and one that has the name of its own."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from mindspeed_vita.checkpoint.native import atomic
from mindspeed_vita.checkpoint.native.stored_steps import ASIDE, BEGUN, StoredSteps
from mindspeed_vita.files.stores import Store


def set_aside_others(steps: StoredSteps, folder: Path, *, since: int, ours: Collection[str]) -> None:
    """Moves whole steps of a store aside: those newer than this run's start, and one that has the name of `folder`.

    A step that the run's folder has, too, stays. A move that was interrupted goes on where it was with the next call. After each object
    `steps.moved` is called.

    Args:
        steps: of the run.
        folder: the local step that is to be sent.
        since: number of the step that the run continued from.
        ours: names of steps that this start of the run has begun to send.

    Raises:
        OSError: the run's folder cannot be read.
        StoreError: the store cannot be reached, or refuses.
    """
    for name in steps.names():
        if name not in ours and (atomic.step_of(Path(name)) > since or name == folder.name):
            marker, local = steps.marker(name), folder.parent / name / atomic.CHECKSUMS
            if marker is not None and not (local.is_file() and local.read_bytes() == marker):
                _move(steps, name, marker)


def _move(steps: StoredSteps, name: str, marker: bytes) -> None:
    """The step is whole in its new place before it is touched in the old one."""
    target, number = ASIDE + name, 1
    while (there := steps.marker(target)) not in (None, marker):
        number += 1
        target = f"{ASIDE}{name}.{number}"
    if there is None:
        _copy(steps, name, target, marker)
    steps.store.remove(f"{target}/{BEGUN}")
    for gate in steps.gate_objects(name):
        steps.store.remove(gate)
        steps.moved()
    steps.remove(name)


def _copy(steps: StoredSteps, name: str, target: str, marker: bytes) -> None:
    """Copies what is not in the new place yet. A file that says which step is copied there keeps the rest of another one out."""
    store = steps.store
    there = {file: found.size for file, found in Store(store.at(target)).files().items()}
    if steps.read(f"{target}/{BEGUN}") != marker:
        store.remove(target)
        steps.write(f"{target}/{BEGUN}", marker)
        there = {}
    for file, found in Store(store.at(name)).files().items():
        if file != atomic.CHECKSUMS and there.get(file) != found.size:
            store.copy(f"{name}/{file}", f"{target}/{file}")
            steps.moved()
    for gate in steps.gate_objects(name):
        store.copy(gate, f"{target}/{gate}")
    steps.write(f"{target}/{atomic.CHECKSUMS}", marker)
