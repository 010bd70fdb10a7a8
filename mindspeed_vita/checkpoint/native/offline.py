"""Native checkpoints without a run: what is in a folder, and a step rewritten as whole tensors in files of a chosen size."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Optional

import mindspeed_vita
from mindspeed_vita.checkpoint import gates
from mindspeed_vita.checkpoint.conversion import Conversion
from mindspeed_vita.checkpoint.native import atomic, shards
from mindspeed_vita.checkpoint.native.full_weights import shard_files
from mindspeed_vita.checkpoint.native.ranks import SaveFailed
from mindspeed_vita.checkpoint.native.step_folder import find, load_state
from mindspeed_vita.files.digest import checksum_of
from mindspeed_vita.files.publish import Published
from mindspeed_vita.files.safetensors_file import SafetensorsFile
from mindspeed_vita.files.shard_stream import write_stream
from mindspeed_vita.files.tensors import joined, one_by_one
from mindspeed_vita.files.unfinished import state_of
from mindspeed_vita.files.writing import naming

_PARTS = ("weights", "optimizer")


@dataclass(frozen=True, kw_only=True)
class StepSummary:
    """One step folder."""

    folder: Path
    step: int
    num_bytes: int
    num_files: int
    resumes: bool
    """Holds optimizer and state, and nothing is missing."""
    problems: tuple[str, ...]
    """Files that are missing or cut off, by names and sizes. No content was read."""
    layout: Optional[dict[str, int]]
    """tp, pp, cp, dp of the run that wrote it; None for weights only."""


def summaries(directory: Path) -> list[StepSummary]:
    """The whole steps of a run, oldest first.

    Raises:
        ValueError: there are none.
    """
    return [_summary(folder) for folder in steps_of(directory)]


def steps_of(directory: Path) -> list[Path]:
    """The whole steps of a run, oldest first, or the step folder itself.

    Raises:
        ValueError: there are none.
    """
    return atomic.complete_steps(directory) or [find(directory)]


def _summary(folder: Path) -> StepSummary:
    files = [path for path in folder.rglob("*") if path.is_file()]
    has_state, problems = (folder / "state.json").is_file(), tuple(_missing_or_cut_off(folder))
    return StepSummary(
        folder=folder,
        step=atomic.step_of(folder),
        num_bytes=sum(path.stat().st_size for path in files),
        num_files=len(files),
        resumes=has_state and (folder / "optimizer").is_dir() and not problems,
        problems=problems,
        layout=load_state(folder).layout if has_state else None,
    )


def _missing_or_cut_off(folder: Path) -> Iterator[str]:
    for name in sorted(atomic.recorded(folder)):
        if not (folder / name).is_file():
            yield f"{name} is missing"
        elif name.endswith(".safetensors"):
            try:
                SafetensorsFile(folder / name)
            except ValueError as error:
                yield str(error).removeprefix(f"{folder}/")


def other_files(folder: Path) -> list[str]:
    """The files of a step that hold no weights and no optimizer state, whoever wrote them, without the checksums themselves."""
    names = (path.relative_to(folder) for path in sorted(folder.rglob("*")) if path.is_file())
    tensors = {f"{part}/{path.name}" for part in _PARTS for path in (folder / part).glob("*.safetensors")}
    return [name.as_posix() for name in names if name.as_posix() not in tensors and name.as_posix() != atomic.CHECKSUMS]


def damage(folder: Path) -> list[str]:
    """Compares every file of a step with its checksum; a line for each that is missing or differs.

    Raises:
        DamagedCheckpoint: the checksums cannot be read.
    """
    return atomic.verify(folder, sorted(atomic.recorded(folder)))


def reshard(source: Path, directory: Path, *, max_file_bytes: int, conversion: Conversion) -> Path:
    """Writes a step anew: every tensor whole, in files of a chosen size, instead of pieces in a file for each rank.

    A run resumes from either, under any layout. The random states are copied, and serve the layout that they were saved under. All other
    files are copied, too. Those that had no checksum have none afterwards. The gates of the step are carried over.

    Args:
        source: run or step folder.
        directory: run folder to write to.
        max_file_bytes: size at which a new file starts.
        conversion: who is told how far it is. Its origin is replaced.

    Raises:
        ValueError: no checkpoint there, the disk is too small, or a gate cannot be read.
        DamagedCheckpoint: a file of the source is missing or differs from its checksum.
        SaveFailed: the disk is full or not writable.
        Published: the step is whole and in its place, but something failed after that.
    """
    folder = find(source)
    recorded = atomic.recorded(folder)
    step = atomic.step_of(folder)
    temp, final = atomic.temporary(directory, step), directory / atomic.step_name(step)
    parts = {part: shards.Reader(folder / part).whole() for part in _PARTS if (folder / part).is_dir()}
    files = [file for part, tensors in parts.items() for file in shard_files(part, tensors, max_file_bytes)]
    sources = [path for part in parts for path in sorted((folder / part).glob("*.safetensors"))]
    conversion = replace(conversion, origin={"version": mindspeed_vita.__version__, "files": state_of(sources)})
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with conversion.begun(temp, files) as journal:
            sums = write_stream(temp, files, one_by_one(joined(*parts.values())), journal, conversion.started(files))
            conversion.before_publishing()
            for name in other_files(folder):
                with naming(temp / name):
                    (temp / name).parent.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(folder / name, temp / name)
                if name in recorded:
                    sums[name] = checksum_of(temp / name)
            for gate in gates.gates_of(folder).values():  # before the step is there: nobody is to find it without them
                gates.write_gate(final, gate)
            atomic.publish(temp, final, sums)
    except Published:
        raise
    except OSError as error:
        raise SaveFailed(f"cannot save into {directory}: {error}; {conversion.advice(error)}") from error
    return final
