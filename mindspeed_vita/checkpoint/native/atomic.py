"""Step folders: their names, the checksums of every file, and which of them are kept. files/publish.py makes them appear.

Nothing here knows what the files hold. `directory` is the folder of a run, `folder` that of one step.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path
from typing import Callable, Iterable, Mapping, Optional, Sequence

from mindspeed_vita.files.digest import CHECKSUM, algorithm_of, checksum_of
from mindspeed_vita.files.publish import publish_folder, remove_temporaries, restore_all, sync, whole_file
from mindspeed_vita.files.writing import write_json

CHECKSUMS = "checksums.json"
BEST = "best.json"
"""File in a run's folder that names the step with the lowest held-out loss (eval.keep_best), and the best ones before it."""
UNSENT = "to_store.json"
"""File in a run's folder that names the steps which are not in checkpoint.store yet, and those of them that pruning spares."""
FETCHING = ".fetching-"
"""In front of the name of a step that is being fetched from there."""
_REMOVING = ".removing-"
"""In front of the name of a step that is being removed."""
_STEP = re.compile(r"step_(\d{7,})")


class DamagedCheckpoint(ValueError):
    """A step folder whose files are not what was written."""


def step_name(step: int) -> str:
    """Name of a step's folder: step_0000100."""
    return f"step_{step:07d}"


def temporary(directory: Path, step: int) -> Path:
    """Where a step is written before it is whole."""
    return directory / f".writing-{step_name(step)}"


def step_of(folder: Path) -> int:
    """The step a folder's name tells.

    Raises:
        ValueError: not the name of a step folder.
    """
    match = _STEP.fullmatch(folder.name)
    if match is None:
        raise ValueError(f"{folder} is not a step folder; expected a name like {step_name(100)}")
    return int(match.group(1))


def is_step(folder: Path) -> bool:
    """Whether a folder has the name of a step, whether it is there or not."""
    return _STEP.fullmatch(folder.name) is not None


def complete_steps(directory: Path) -> list[Path]:
    """Whole step folders, oldest first. Folders without their checksum file do not count."""
    if not directory.is_dir():
        return []
    found = [child for child in directory.iterdir() if _STEP.fullmatch(child.name) and _is_whole(child)]
    return sorted(found, key=step_of)


def _is_whole(folder: Path) -> bool:
    return (folder / CHECKSUMS).is_file()


def publish(temp: Path, final: Path, checksums: Mapping[str, str]) -> None:
    """Turn a complete temporary folder into a visible step, by one rename.

    Args:
        temp: folder on the same file system as `final`, every file already synced.
        final: step folder; one of the same name is replaced.
        checksums: relative file name -> checksum, for every file in `temp`.
    """
    write_json(temp / CHECKSUMS, {CHECKSUM: dict(checksums)})
    publish_folder(temp, final, known_by=CHECKSUMS, replace=True)


def nothing() -> None:
    """Where nobody hears of progress, or there is nothing to wait for."""


def verify(folder: Path, names: Iterable[str], on_part: Callable[[], None] = nothing) -> list[str]:
    """Compare files with the recorded checksums.

    Args:
        folder: a step folder.
        names: relative names to check, as `recorded(folder)` lists them.
        on_part: called after each file.

    Returns:
        One line per file that is missing, cannot be read or differs; empty when all is well.
    """
    algorithm, checksums = _recorded(folder)
    problems = []
    for name in names:
        path = folder / name
        try:
            if not path.is_file():
                problems.append(f"{name} is missing")
            elif checksum_of(path, algorithm) != checksums[name]:
                problems.append(f"{name} does not match its checksum")
        except OSError as error:  # such as a disk's bad sector
            problems.append(f"{name} cannot be read ({error.strerror or error})")
        on_part()
    return problems


def recorded(folder: Path) -> dict[str, str]:
    """Relative file name -> checksum, as written with the step.

    Raises:
        DamagedCheckpoint: the checksum file is missing or unreadable.
    """
    return _recorded(folder)[1]


def _recorded(folder: Path) -> tuple[str, dict[str, str]]:
    """The algorithm, and what recorded returns."""
    try:
        return read_sums((folder / CHECKSUMS).read_bytes())
    except (OSError, ValueError) as error:
        raise damaged(folder, [f"{CHECKSUMS} cannot be read ({error})"]) from error


def read_sums(content: bytes) -> tuple[str, dict[str, str]]:
    """The algorithm and the checksums by relative file name, from the content of a checksum file.

    Raises:
        ValueError: it is no such file.
    """
    try:
        sums = json.loads(content)
        algorithm = algorithm_of(sums)
        found = sums[algorithm]
    except (TypeError, AttributeError, RecursionError) as error:
        raise ValueError(str(error)) from error
    if not isinstance(found, dict) or not all(isinstance(digest, str) for digest in found.values()):
        raise ValueError(f"{algorithm} is no object of names and checksums")
    return algorithm, found


def damaged(folder: Path, problems: Iterable[str]) -> DamagedCheckpoint:
    """The error for a folder that failed `verify`; it offers the newest earlier step."""
    before = [path for path in complete_steps(folder.parent) if _STEP.fullmatch(folder.name) and step_of(path) < step_of(folder)]
    if before:
        command = f"vita train RECIPE --resume-from {before[-1].name}"
        advice = f"the newest one before it is {before[-1]}: name that, or continue the run from it ({command})"
    else:
        advice = "no earlier step is left; start again or restore the folder from a copy"
    return DamagedCheckpoint(f"checkpoint {folder} is damaged: {'; '.join(problems)}; {advice}")


def mark_best(directory: Path, step: Optional[int], loss: float = 0.0) -> None:
    """Names the run's best step in best.json; None removes the file, and pruning spares no step as the best one.

    The step may not be on the disk yet. Until it is, pruning spares the best one of those that were named before it.

    Raises:
        OSError: the file cannot be written.
        ValueError: the file that is there cannot be read.
    """
    path = directory / BEST
    if step is None:
        path.unlink(missing_ok=True)
        return
    named = step_name(step)
    before = [] if _is_whole(directory / named) else [name for name in _bests(directory) if name != named]
    whole = next((place for place, name in enumerate(before) if _is_whole(directory / name)), len(before))
    content = {"step": step, "loss": loss, "before": [step_of(Path(name)) for name in before[: whole + 1]]}
    with whole_file(path) as temporary:
        temporary.write_text(json.dumps(content) + "\n", encoding="utf-8")


def best_step(directory: Path) -> Optional[Path]:
    """The step folder that mark_best names, whether it is there or not; None where no step is named.

    Raises:
        ValueError: the file cannot be read.
    """
    names = _bests(directory)
    return directory / names[0] if names else None


def kept_best(directory: Path) -> Optional[Path]:
    """The best step of those that are whole on the disk: pruning spares it. None where no step is named, or none of them is there.

    Raises:
        ValueError: best.json cannot be read.
    """
    return next((directory / name for name in _bests(directory) if _is_whole(directory / name)), None)


def _bests(directory: Path) -> list[str]:
    """The names in best.json, the best one first."""
    path = directory / BEST
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return []
    return bests_named(content, path)


def bests_named(content: bytes, place: Path | str) -> list[str]:
    """The names of the steps in a best.json: the best one, then those that were it before. Earlier versions wrote the first only.

    Args:
        content: of the file.
        place: the file, for the message.

    Raises:
        ValueError: it names none.
    """
    try:
        told = json.loads(content)
        return [step_name(int(step)) for step in (told["step"], *told.get("before", []))]
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise ValueError(f"{place} does not name a step ({error!r}); remove it, and the best step may be pruned") from error


def mark_unsent(directory: Path, names: Sequence[str], *, spared: Sequence[str] = ()) -> None:
    """Names the steps that are not in the store yet, and those of them that pruning spares until they are; no names: nothing is on its way.

    Raises:
        OSError: the file cannot be written.
    """
    if not names:
        (directory / UNSENT).unlink(missing_ok=True)
        return
    with whole_file(directory / UNSENT) as temporary:
        temporary.write_text(json.dumps({"steps": list(names), "spared": list(spared)}) + "\n", encoding="utf-8")


def unsent_steps(directory: Path) -> list[str]:
    """The names that mark_unsent wrote, of steps that are still there.

    Raises:
        ValueError: the file cannot be read.
    """
    return _on_their_way(directory, "steps")


def _on_their_way(directory: Path, key: str) -> list[str]:
    path = directory / UNSENT
    try:
        content = path.read_bytes()
    except FileNotFoundError:  # also where another thread removes it just now
        return []
    try:
        told = json.loads(content)
        names = [str(name) for name in told.get(key, told["steps"])]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{path} does not name steps ({error!r}); remove it, and pruning spares none of them") from error
    return [folder.name for folder in complete_steps(directory) if folder.name in names]


def surplus(directory: Path, keep: int) -> list[Path]:
    """The whole steps that prune removes: all but the `keep` newest, kept_best and those that mark_unsent spares; none with 0."""
    steps = complete_steps(directory)[:-keep] if keep > 0 else []
    best = kept_best(directory) if steps else None
    spared = _on_their_way(directory, "spared") if steps else []
    return [folder for folder in steps if folder != best and folder.name not in spared]


def recover(directory: Path) -> None:
    """Undoes what a killed run left half done in its folder. Call it where no other process writes there, before a step is chosen.

    A step whose replacement died between two renames gets its name back: it is whole. Steps on their way out go for good, and so do half
    written ones: the next save asks for free space before it writes, and they take some.
    """
    _recover_steps(directory)
    _remove_half_written(directory)
    for file in (BEST, UNSENT):
        remove_temporaries(directory / file)


def _recover_steps(directory: Path) -> None:
    restore_all(directory, "step_*", known_by=CHECKSUMS)
    for going in (*directory.glob(f"{_REMOVING}*"), *directory.glob(f"{FETCHING}*")):
        shutil.rmtree(going, ignore_errors=True)


def prune(directory: Path, keep: int) -> list[Path]:
    """Removes what `surplus` names and what interrupted work left; returns the steps that went.

    Another thread may write best.json and to_store.json meanwhile, so their temporary files stay.
    """
    _recover_steps(directory)
    gone = surplus(directory, keep)
    for folder in gone:
        # under another name first: a removal that is interrupted leaves no folder that looks whole, and the next one goes on with it
        os.rename(folder, folder.with_name(_REMOVING + folder.name))
    if gone:
        sync(directory)
    for folder in gone:
        shutil.rmtree(folder.with_name(_REMOVING + folder.name), ignore_errors=True)
    for rest in _half_removed(directory) if keep > 0 else ():
        shutil.rmtree(rest, ignore_errors=True)
    _remove_half_written(directory)
    return gone


def _remove_half_written(directory: Path) -> None:
    for rest in directory.glob(".writing-step_*"):
        if rest.is_dir():
            shutil.rmtree(rest, ignore_errors=True)
        else:  # the journal of a conversion
            rest.unlink(missing_ok=True)


def _half_removed(directory: Path) -> list[Path]:
    """Step folders without checksums that are older than every whole one: an earlier version that was killed while pruning left them."""
    steps = complete_steps(directory)
    found = [child for child in directory.glob("step_*") if is_step(child) and not (child / CHECKSUMS).exists()]
    return [child for child in found if steps and step_of(child) < step_of(steps[0])]
