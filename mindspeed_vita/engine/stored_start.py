"""Brings the step that a run continues from out of the store into the run's folder, where that has none as new."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any, Optional

from mindspeed_vita.addresses import is_address
from mindspeed_vita.checkpoint.fetched import fetch_files
from mindspeed_vita.checkpoint.native import atomic
from mindspeed_vita.checkpoint.native.ranks import gather, gather_patiently, on_first_rank, rank, world
from mindspeed_vita.checkpoint.native.stored_steps import StoredSteps
from mindspeed_vita.config import Recipe
from mindspeed_vita.engine.resuming import Resume
from mindspeed_vita.files.publish import publish_folder
from mindspeed_vita.files.space import check_space
from mindspeed_vita.files.stores import StoreError
from mindspeed_vita.files.writing import write_bytes


def bring_step(recipe: Recipe, resume: Resume) -> tuple[Resume, list[str]]:
    """Fetches the newest whole step that is newer than those of the run's folder, or the one that the user names. Collective.

    Steps that are half sent or damaged are passed over. Where no newer step of the store is sound, the run's own newest one stays.

    Args:
        recipe: the run.
        resume: what the user asks; its step may be the address of a run or a step.

    Returns:
        The same without an address, and lines for people.

    Raises:
        ValueError: the store cannot be reached, or every step there is damaged, and the run's folder has no step either; the step that the
            user names is not there or damaged; or checkpoint.resume is false and the store holds a step.
    """
    asked = is_address(resume.step)
    if not asked and not recipe.checkpoint.store:
        return resume, []
    address, wanted = _place(resume.step) if asked else (recipe.checkpoint.store, _name(resume.step))
    start = _Start(Path(recipe.checkpoint.directory), address, wanted, asked=asked, resumes=recipe.checkpoint.resume)
    name = start.bring()
    return (replace(resume, step=name) if asked else resume), start.told


def _place(address: str) -> tuple[str, str]:
    """The address of the run, and the name of a step or nothing."""
    run, _, name = address.rstrip("/").rpartition("/")
    return (run, name) if atomic.is_step(Path(name)) else (address, "")


def _name(told: str) -> str:
    """The name of the step that --resume-from names."""
    if told.isascii() and told.isdigit():
        return atomic.step_name(int(told))
    return told.rstrip("/").rpartition("/")[2]


class _Start:
    """One look at a store. All methods are collective, unless they say otherwise."""

    def __init__(self, directory: Path, address: str, wanted: str, *, asked: bool, resumes: bool) -> None:
        self.directory, self.wanted, self.asked, self.resumes = directory, wanted, asked, resumes
        self.steps = StoredSteps(address)
        self.told: list[str] = []
        self.own = ""
        """The newest whole step of the run's folder, as the first rank sees it."""

    def bring(self) -> str:
        """Returns the name of the step that the user's address stands for, or that was fetched; empty: none."""
        names = self._candidates()
        for name in names:
            problem = self._fetch(name)
            if not problem:
                return name
            self.told.append(f"passed over {problem}")
        if not names:
            return ""
        told = "; ".join(self.told)
        if self.wanted:
            raise ValueError(f"--resume-from {self.steps.store.at(self.wanted)} cannot be taken: {told}; restore it, or name another step")
        if self.own and not self.asked:
            self.told.append(f"no newer step of {self.steps.address} can be taken, so the run goes on from its own {self.own}")
            return ""
        raise ValueError(f"no step of {self.steps.address} can be taken: {told}; restore it, or begin in another checkpoint.store")

    def _candidates(self) -> list[str]:
        """Whole steps of the store that come into question, the best first; the first rank looks."""
        found: list[tuple[list[str], list[str]]] = []
        on_first_rank(lambda: found.append(self._look()))
        (names, told), self.own = gather((found[0] if found else None, self.own))[0]
        self.told += told
        return list(names)

    def _look(self) -> tuple[list[str], list[str]]:
        """The same, on one rank."""
        local = {folder.name: folder for folder in atomic.complete_steps(self.directory)}
        self.own = max(local, key=lambda name: atomic.step_of(Path(name)), default="")
        if self.wanted and not self.asked:
            return ([] if self.wanted in local or self.wanted not in self.steps.names() else [self.wanted]), []
        try:
            listed = list(self.steps.newest_first())
        except StoreError as error:
            if not local or self.asked:
                raise ValueError(f"{error}; the run cannot know whether it has a checkpoint there, so it does not begin anew") from error
            return [], [f"the store does not say whether it has a newer step: {error}"]
        whole = [name for name, is_whole in listed if is_whole]
        if self.wanted and self.wanted not in whole:
            there = f"it has {', '.join(whole)}" if whole else "it has no whole step"
            raise ValueError(f"--resume-from {self.steps.store.at(self.wanted)}: there is no such whole step; {there}")
        if self.asked:
            if not whole:
                raise ValueError(f"--resume-from {self.steps.address}: there is no whole step of a run")
            return [self.wanted] if self.wanted else whole, []
        newest = atomic.step_of(Path(self.own)) if self.own else -1
        newer = [(name, is_whole) for name, is_whole in listed if atomic.step_of(Path(name)) > newest]
        half = [f"passed over {self.steps.store.at(name)}: it was never sent whole" for name, is_whole in newer if not is_whole]
        names = [name for name, is_whole in newer if is_whole]
        if names and not self.resumes:
            raise ValueError(
                f"checkpoint.resume is false, but {self.steps.address} holds {names[0]}; set it to true to continue, or choose another "
                "checkpoint.store"
            )
        return names, half

    def _fetch(self, name: str) -> str:
        """Fetches a step into the run's folder, each rank a part; returns why it cannot be taken, or nothing."""
        target, temporary = self.directory / name, self.directory / f"{atomic.FETCHING}{name}"
        plan: list[tuple[bytes, dict[str, int], str]] = []
        on_first_rank(lambda: plan.append(self._plan(name, target, temporary)))
        marker, sizes, problem = gather(plan[0] if plan else None)[0]
        if problem or not sizes:
            return str(problem)
        error: Optional[Exception] = None
        problems: list[str] = []
        try:
            mine = sorted(sizes, key=lambda file: (-sizes[file], file))[rank() :: world()]
            problems = fetch_files(self.steps, name, mine, marker, temporary)
        except (ValueError, OSError) as caught:
            error = caught
        outcomes: list[Any] = gather_patiently((problems, "" if error is None else str(error) or type(error).__name__))
        failed = next((reason for _, reason in outcomes if reason), "")
        if failed:
            raise ValueError(f"{name} cannot be fetched into {self.directory}: {failed}") from error
        found = [line for lines, _ in outcomes for line in lines]
        if found:
            on_first_rank(lambda: shutil.rmtree(temporary, ignore_errors=True))
            return f"{self.steps.store.at(name)}: {'; '.join(found[:3])}"
        on_first_rank(lambda: self._publish(temporary, target, marker))
        self.told.append(f"{name} was fetched from {self.steps.address}")
        return ""

    def _plan(self, name: str, target: Path, temporary: Path) -> tuple[bytes, dict[str, int], str]:
        """What is to be fetched, or why it cannot be; nothing where the run's folder has this very step. One rank."""
        try:
            marker, sizes = self.steps.listed(name)
        except StoreError:
            raise
        except ValueError as error:  # damaged, or with names that lead out of it
            return b"", {}, str(error)
        if (target / atomic.CHECKSUMS).is_file() and (target / atomic.CHECKSUMS).read_bytes() == marker:
            return marker, {}, ""
        if target.exists():
            raise ValueError(f"{self.steps.store.at(name)}: {target} is another step of that name; choose another checkpoint.directory")
        shutil.rmtree(temporary, ignore_errors=True)
        for folder in {(temporary / file).parent for file in sizes}:
            folder.mkdir(parents=True, exist_ok=True)
        check_space(self.directory, sum(sizes.values()), advice="free space there, or choose another checkpoint.directory")
        return marker, sizes, ""

    def _publish(self, temporary: Path, target: Path, marker: bytes) -> None:
        """Gives the fetched step its name, after the run's files: a kill in between leaves no new step with old ones. One rank."""
        self.steps.fetch_run_files(target.name, self.directory)
        write_bytes(temporary / atomic.CHECKSUMS, marker)
        publish_folder(temporary, target, known_by=atomic.CHECKSUMS, replace=True)
