"""Whole weights of a native checkpoint, read and written in one process without a model: one tensor at a time is in memory."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Optional

import torch

from mindspeed_vita.checkpoint.conversion import IN_MEMORY, Conversion
from mindspeed_vita.checkpoint.lineage import LINEAGE
from mindspeed_vita.checkpoint.native import atomic, shards
from mindspeed_vita.checkpoint.native.ranks import SaveFailed
from mindspeed_vita.checkpoint.native.step_folder import TrainState, find, latest, saved_recipe
from mindspeed_vita.config import Recipe, recipe_to_dict
from mindspeed_vita.files.publish import Published
from mindspeed_vita.files.shard_stream import ShardFile, cut, write_stream
from mindspeed_vita.files.tensors import Spec, Tensors, held, joined, one_by_one
from mindspeed_vita.files.writing import write_json

_ONE_FILE = 1 << 62
"""Bytes that no file has."""


def open_full_weights(path: str | Path, *, compare: bool = True) -> tuple[Tensors, dict[str, Any], Callable[[], None]]:
    """Full, unsharded weights by name, the recipe, and what waits for the comparison with the checksums, which begins in a thread.

    Args:
        path: a run folder (its newest step is taken) or a step folder.
        compare: False leaves the comparison out, for a caller who does it otherwise.

    Returns:
        The weights, each read when it is asked for; the recipe; and a function that raises DamagedCheckpoint where a file differs
        from its checksum. Publish nothing before it returned.

    Raises:
        ValueError: no checkpoint there.
        atomic.DamagedCheckpoint: a file is missing or is no safetensors file.
    """
    folder = find(path)
    names = [name for name in atomic.recorded(folder) if not name.startswith("optimizer/")]
    wait = compared_with_checksums(folder, names) if compare else atomic.nothing
    try:
        reader = shards.Reader(folder / "weights")
    except ValueError as error:
        raise atomic.damaged(folder, [str(error)]) from error
    return reader.whole(), saved_recipe(folder), wait


def compared_with_checksums(folder: Path, names: Sequence[str]) -> Callable[[], None]:
    """Begins to compare files of a step with their checksums, in a thread. What it returns waits for the end, and raises what was found.

    Raises:
        atomic.DamagedCheckpoint: a file is missing.
    """
    missing = [f"{name} is missing" for name in names if not (folder / name).is_file()]
    if missing:
        raise atomic.damaged(folder, missing)
    return _Comparison(folder, names).wait


class _Comparison:
    """Compares files with their checksums in a thread that does not keep the process from ending."""

    def __init__(self, folder: Path, names: Sequence[str]) -> None:
        self._folder = folder
        self._problems: list[str] = []
        self._error: Optional[Exception] = None
        self._thread = threading.Thread(target=self._compare, args=(names,), name="vita-verify", daemon=True)
        self._thread.start()

    def _compare(self, names: Sequence[str]) -> None:
        try:
            self._problems = atomic.verify(self._folder, names)
        except (OSError, ValueError) as error:  # raised by wait
            self._error = error

    def wait(self) -> None:
        """Raises what was found."""
        self._thread.join()
        if self._error is not None:
            raise self._error
        if self._problems:
            raise atomic.damaged(self._folder, self._problems)


def read_full_weights(path: str | Path) -> tuple[Tensors, dict[str, Any]]:
    """Full, unsharded weights by name, each read when it is asked for, and the recipe; the checksums were compared.

    Raises:
        ValueError: no checkpoint there.
        atomic.DamagedCheckpoint: a file is missing or differs from its checksum.
    """
    weights, recipe, wait = open_full_weights(path)
    wait()
    return weights, recipe


def save_full_weights(
    directory: str | Path,
    tensors: Mapping[str, torch.Tensor],
    recipe: Recipe,
    *,
    step: int = 0,
    max_file_bytes: Optional[int] = None,
    optimizer: Optional[Tensors] = None,
    state: Optional[TrainState] = None,
    conversion: Conversion = IN_MEMORY,
) -> Path:
    """Writes a step from full tensors by name, in one process and without a model: weights only, or a step that a run continues from.

    Args:
        directory: folder of the run.
        tensors: all weights.
        recipe: what they are of.
        step: its number.
        max_file_bytes: size at which a new file starts; None writes one.
        optimizer: whole tensors of the optimizer, named as optimizer_state.pieces; with `state` only.
        state: where the run stands; its step is the step's number.
        conversion: where the weights come from, for a later try to go on, and who is told how far it is.

    Returns:
        The step folder.

    Raises:
        ValueError: the disk is too small.
        SaveFailed: the disk is full or not writable.
        Published: the step is whole and in its place, but something failed after that.
    """
    assert (optimizer is None) == (state is None), "an optimizer goes with the state of its run"
    step = step if state is None else state.step
    directory, weights = Path(directory), held(tensors)
    temp, final = atomic.temporary(directory, step), directory / atomic.step_name(step)
    parts = {"weights": weights} if optimizer is None else {"weights": weights, "optimizer": optimizer}
    files = [file for part, whole in parts.items() for file in shard_files(part, whole, max_file_bytes or _ONE_FILE)]
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with conversion.begun(temp, files) as journal:
            sums = write_stream(temp, files, one_by_one(joined(*parts.values())), journal, conversion.started(files))
            conversion.before_publishing()
            sums["recipe.json"] = write_json(temp / "recipe.json", recipe_to_dict(recipe))
            if conversion.lineage is not None:
                sums[LINEAGE] = write_json(temp / LINEAGE, conversion.lineage.encode())
            if state is not None:
                sums["state.json"] = write_json(temp / "state.json", asdict(state))
            atomic.publish(temp, final, sums)
        atomic.prune(directory, keep=0)
    except Published:
        raise
    except OSError as error:
        if conversion.origin is None:
            shutil.rmtree(temp, ignore_errors=True)
        newest = latest(directory)
        kept = f"earlier checkpoints are untouched (newest: {newest.name})" if newest else "there is no earlier checkpoint"
        raise SaveFailed(f"cannot save into {directory}: {error}; {conversion.advice(error)}; {kept}") from error
    return final


def shard_files(folder: str, tensors: Tensors, max_file_bytes: int) -> list[ShardFile]:
    """The plan of a folder of a step, whole tensors in order.

    Args:
        folder: weights or optimizer.
        tensors: what it holds.
        max_file_bytes: size at which a new file starts.
    """
    parts = cut(tensors.specs(), max_file_bytes)
    return [ShardFile(f"{folder}/rank_{number:05d}.safetensors", part, _metadata(part)) for number, part in enumerate(parts)]


def _metadata(part: Mapping[str, Spec]) -> dict[str, str]:
    return {"global_shapes": json.dumps({name: spec.shape for name, spec in part.items()}, separators=(",", ":"))}
