"""One step on its way to the disk: written under a temporary name, in this thread or behind training's back, and published when whole."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from typing import Any, Optional

import safetensors.torch
import torch

from mindspeed_vita.checkpoint import lineage as lineages
from mindspeed_vita.checkpoint.lineage import Lineage
from mindspeed_vita.checkpoint.native import atomic, shards
from mindspeed_vita.checkpoint.native.mail import Mail
from mindspeed_vita.checkpoint.native.ranks import Reason, fail, gather, rank, reason_of, together
from mindspeed_vita.config import Recipe, recipe_to_dict
from mindspeed_vita.files.writing import write_json

Digests = dict[str, Optional[str]]
"""Checksum of each file that a rank wrote, by path inside the step folder; None where there was nothing to write."""


class StepWriter:
    """Writes this rank's files, then, together with all ranks, makes the step visible.

    Making one is collective. In the background the rest happens in threads, which use no collectives: they write, and the first rank's
    thread publishes the step once all have written. Otherwise `finish` does that and is collective. A step that is not published,
    because the run died, is never visible.

    Args:
        directory: folder of the run.
        step: its number.
        recipe: what the run was told.
        write: writes this rank's files into the temporary folder and returns their digests; calls no collective.
        state: where the run stands; None for weights only.
        rng: this rank's random states by name.
        keep: newest steps kept; 0 keeps all.
        background: write and publish in a thread of its own.
        allowed: called in that thread on the first rank, before it publishes; raises ValueError where this run may not write any more.
        lineage: where the weights come from; on the first rank.

    Raises:
        SaveFailed: the folder cannot be made.
    """

    def __init__(
        self,
        directory: Path,
        step: int,
        recipe: Recipe,
        write: Callable[[Path], Digests],
        *,
        state: Optional[Mapping[str, Any]] = None,
        rng: Optional[Mapping[str, torch.Tensor]] = None,
        keep: int = 0,
        background: bool = False,
        allowed: Optional[Callable[[], None]] = None,
        lineage: Optional[Lineage] = None,
    ) -> None:
        self.directory, self.recipe, self.state, self.rng, self.keep = directory, recipe, state, dict(rng or {}), keep
        self.lineage = lineage
        self.temp, self.final = atomic.temporary(directory, step), directory / atomic.step_name(step)
        with together(directory):
            if rank() == 0:
                shutil.rmtree(self.temp, ignore_errors=True)
                for name in ("weights", "optimizer") if state else ("weights",):
                    (self.temp / name).mkdir(parents=True)
        self._behind: Optional[Future[Optional[Reason]]] = None
        self._digests: Digests = {}
        self._error: Optional[OSError] = None
        if background:
            self._behind = Future()
            save = partial(self._save_behind, write, allowed or (lambda: None), Mail())
            # a daemon: a run that ends by an error does not wait for other ranks' files
            threading.Thread(target=_fill, args=(self._behind, save), name="vita-save", daemon=True).start()
            return
        try:
            self._digests = write(self.temp)
        except OSError as error:  # told to every rank by finish
            self._error = error

    def written(self) -> bool:
        """Whether `finish` would return at once on this rank. Not collective."""
        return self._behind is None or self._behind.done()

    def finish(self) -> Path:
        """Waits until the step is published, or publishes it. Collective unless the step is written in the background.

        Returns:
            the step folder.

        Raises:
            SaveFailed: the disk is full or not writable, on any rank. The temporary folder is gone, earlier steps are untouched.
            ValueError: this run may not write into the folder any more.
        """
        if self._behind is not None:
            reason = self._behind.result()
            if reason is not None:
                fail(self.directory, reason)
            return self.final
        try:
            with together(self.directory):
                if self._error is not None:
                    raise self._error
            sums, states = gather(self._digests), gather(self.rng)
            with together(self.directory):
                if rank() == 0:
                    self._publish(sums, states)
        except OSError:
            if rank() == 0:
                shutil.rmtree(self.temp, ignore_errors=True)
            raise
        return self.final

    def _save_behind(self, write: Callable[[Path], Digests], allowed: Callable[[], None], mail: Mail) -> Optional[Reason]:
        """Writes this rank's files and, on the first rank, publishes the step when all have; returns why that failed on any rank."""
        digests: Digests = {}
        reason: Optional[Reason] = None
        try:
            digests = write(self.temp)
        except Exception as error:  # noqa: BLE001 - whatever it is, all are told, and fail: they wait for this rank
            reason = reason_of(error)
        parts = [_opened(part) for part in mail.to_first(_sealed(reason, digests, self.rng))]
        if parts:  # on the first rank
            reason = next((told for told, _, _ in parts if told), None)
            try:
                if reason is None:
                    allowed()
                    self._publish([sums for _, sums, _ in parts], [states for _, _, states in parts])
            except Exception as error:  # noqa: BLE001 - as above
                reason = reason_of(error)
            if reason is not None and reason[0] != "refused":  # else the folder is another run's
                shutil.rmtree(self.temp, ignore_errors=True)
        answer = json.loads(mail.from_first(json.dumps(reason).encode()))
        return None if answer is None else (answer[0], answer[1])

    def _publish(self, sums: list[Digests], states: list[dict[str, torch.Tensor]]) -> None:
        merged = {name: digest for part in sums for name, digest in part.items() if digest is not None}
        merged["recipe.json"] = write_json(self.temp / "recipe.json", recipe_to_dict(self.recipe))
        if self.state is not None:
            merged["state.json"] = write_json(self.temp / "state.json", self.state)
        if self.lineage is not None:
            merged[lineages.LINEAGE] = write_json(self.temp / lineages.LINEAGE, self.lineage.encode())
        random = [shards.whole(f"{rank}/{name}", data) for rank, part in enumerate(states) for name, data in part.items()]
        digest = shards.write(self.temp / "rng.safetensors", random)
        atomic.publish(self.temp, self.final, merged if digest is None else {**merged, "rng.safetensors": digest})
        atomic.prune(self.directory, self.keep)


def _fill(future: Future[Any], work: Callable[[], Any]) -> None:
    try:
        future.set_result(work())
    except BaseException as error:  # noqa: BLE001 - whoever asks for the result gets it
        future.set_exception(error)


def _sealed(reason: Optional[Reason], digests: Digests, rng: Mapping[str, torch.Tensor]) -> bytes:
    """What a rank tells the first one, as bytes. No pickle: whoever reaches the store's port could send one, and it would run."""
    tensors = {name: state.contiguous() for name, state in rng.items()}
    return json.dumps([reason, digests]).encode() + b"\n" + safetensors.torch.save(tensors)


def _opened(told: bytes) -> tuple[Optional[Reason], Digests, dict[str, torch.Tensor]]:
    """The opposite of _sealed."""
    line, _, tensors = told.partition(b"\n")
    reason, digests = json.loads(line)
    return None if reason is None else (reason[0], reason[1]), digests, safetensors.torch.load(tensors)
