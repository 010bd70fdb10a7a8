"""Step folders that are visible only when whole: temporary folder, checksums of every file, fsync, rename.

Nothing here knows what the files hold. `directory` is the folder of a run, `folder` that of one step.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Iterable, Iterator, Mapping

CHECKSUMS = "checksums.json"
_STEP = re.compile(r"step_(\d{7,})")
_REPLACED = ".replaced-"
_BLOCK = 1 << 22


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


def complete_steps(directory: Path) -> list[Path]:
    """Whole step folders, oldest first. Folders without their checksum file do not count."""
    if not directory.is_dir():
        return []
    found = [child for child in directory.iterdir() if _STEP.fullmatch(child.name) and (child / CHECKSUMS).is_file()]
    return sorted(found, key=step_of)


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """An OSError that does not say which file it is about, as those of write() on a full disk, gets this path."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = str(path)
        raise


def write_bytes(path: Path, content: bytes) -> str:
    """Write a file so that it survives a crash; returns its sha256.

    Raises:
        OSError: naming the file.
    """
    with naming(path), path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    return hashlib.sha256(content).hexdigest()


def write_json(path: Path, content: Mapping[str, Any]) -> str:
    """As write_bytes, for a JSON file that people may read."""
    return write_bytes(path, (json.dumps(content, indent=1, sort_keys=True) + "\n").encode())


def publish(temp: Path, final: Path, checksums: Mapping[str, str]) -> None:
    """Turn a complete temporary folder into a visible step, by one rename.

    Args:
        temp: folder on the same file system as `final`, every file already synced.
        final: step folder; one of the same name is replaced.
        checksums: relative file name -> sha256, for every file in `temp`.
    """
    write_json(temp / CHECKSUMS, {"sha256": dict(checksums)})
    for folder in [*(path for path in temp.rglob("*") if path.is_dir()), temp]:
        _sync_folder(folder)
    old = final.with_name(_REPLACED + final.name)
    if final.exists():
        shutil.rmtree(old, ignore_errors=True)
        os.rename(final, old)
    os.rename(temp, final)
    _sync_folder(final.parent)
    shutil.rmtree(old, ignore_errors=True)


def verify(folder: Path, names: Iterable[str]) -> list[str]:
    """Compare files with the recorded checksums.

    Args:
        folder: a step folder.
        names: relative names to check, as `recorded(folder)` lists them.

    Returns:
        One line per file that is missing or differs; empty when all is well.
    """
    checksums = recorded(folder)
    problems = []
    for name in names:
        path = folder / name
        if not path.is_file():
            problems.append(f"{name} is missing")
        elif _digest(path) != checksums[name]:
            problems.append(f"{name} does not match its checksum")
    return problems


def recorded(folder: Path) -> dict[str, str]:
    """Relative file name -> sha256, as written with the step.

    Raises:
        DamagedCheckpoint: the checksum file is missing or unreadable.
    """
    try:
        return dict(json.loads((folder / CHECKSUMS).read_text())["sha256"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DamagedCheckpoint(f"checkpoint {folder}: {CHECKSUMS} cannot be read ({error}); use another step") from error


def damaged(folder: Path, problems: Iterable[str]) -> DamagedCheckpoint:
    """The error for a folder that failed `verify`; it offers the newest earlier step."""
    before = [path for path in complete_steps(folder.parent) if _STEP.fullmatch(folder.name) and step_of(path) < step_of(folder)]
    if before:
        advice = f"delete or move {folder.name} to continue from {before[-1].name}"
    else:
        advice = "no earlier step is left; start again or restore the folder from a copy"
    return DamagedCheckpoint(f"checkpoint {folder} is damaged: {'; '.join(problems)}; {advice}")


def prune(directory: Path, keep: int) -> list[Path]:
    """Remove all but the `keep` newest whole steps (0 keeps all) and what interrupted writes left; returns what went.

    A step whose replacement died between the two renames of `publish` gets its name back first: it is whole.
    """
    for old in directory.glob(f"{_REPLACED}step_*"):
        final = directory / old.name.removeprefix(_REPLACED)
        if not final.exists() and (old / CHECKSUMS).is_file():
            os.rename(old, final)
    gone = complete_steps(directory)[:-keep] if keep > 0 else []
    for folder in gone:
        # the checksum file goes first: a removal that is interrupted leaves no folder that looks whole
        (folder / CHECKSUMS).unlink()
        shutil.rmtree(folder)
    for rest in (*directory.glob(".writing-step_*"), *directory.glob(f"{_REPLACED}step_*")):
        shutil.rmtree(rest, ignore_errors=True)
    return gone


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
