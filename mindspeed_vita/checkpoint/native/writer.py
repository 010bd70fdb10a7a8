"""One step on its way to the disk: written under a temporary name, in this thread or behind training's back, and published when whole."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Optional

import torch

from mindspeed_vita.checkpoint import lineage as lineages
from mindspeed_vita.checkpoint.lineage import Lineage
from mindspeed_vita.checkpoint.native import atomic, shards
from mindspeed_vita.checkpoint.native.ranks import gather, rank, together
from mindspeed_vita.config import Recipe, recipe_to_dict
from mindspeed_vita.files.writing import write_json

Digests = dict[str, Optional[str]]
"""Checksum of each file that a rank wrote, by path inside the step folder; None where there was nothing to write."""


class StepWriter:
    """Writes this rank's files, then, together with all ranks, makes the step visible.

    Making one and `finish` are collective; nothing in between is, so training may go on while a background writer works on
    copies. A step that is never finished, because the run died, is never visible.

    Args:
        directory: folder of the run.
        step: its number.
        recipe: what the run was told.
        write: writes this rank's files into the temporary folder and returns their digests; calls no collective.
        state: where the run stands; None for weights only.
        rng: this rank's random states by name.
        keep: newest steps kept; 0 keeps all.
        background: write in a thread of its own.
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
        self._digests: Future[Digests] = Future()
        if background:
            pool = ThreadPoolExecutor(1, thread_name_prefix="vita-save")
            self._digests = pool.submit(write, self.temp)
            pool.shutdown(wait=False)
            return
        try:
            self._digests.set_result(write(self.temp))
        except OSError as error:  # told to every rank by finish
            self._digests.set_exception(error)

    def written(self) -> bool:
        """Whether every rank's files are written, so that finish would not wait. Collective."""
        return all(gather(self._digests.done()))

    def finish(self) -> Path:
        """Waits for the files and publishes the step. Collective.

        Returns:
            the step folder.

        Raises:
            SaveFailed: the disk is full or not writable, on any rank. The temporary folder is gone, earlier steps are untouched.
        """
        digests: Digests = {}
        try:
            with together(self.directory):
                digests = self._digests.result()
            sums, states = gather(digests), gather(self.rng)
            with together(self.directory):
                if rank() == 0:
                    self._publish(sums, states)
        except OSError:
            if rank() == 0:
                shutil.rmtree(self.temp, ignore_errors=True)
            raise
        return self.final

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
