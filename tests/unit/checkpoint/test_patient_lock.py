"""A process that waits for a lock's owner on another host: until it counts as dead, gives the lock back or gives a heartbeat."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from mindspeed_vita.checkpoint import folder_lock
from mindspeed_vita.checkpoint.folder_lock import SILENT, FolderInUse, FolderLock
from tests.unit.checkpoint.test_folder_lock import ELSEWHERE, folder, write

__all__ = ["folder"]


def patient(folder: Path) -> FolderLock:
    return FolderLock(folder / "run.lock", folder=folder, work="vita train (x)", advice="wait", patient=True)


@pytest.mark.parametrize("ends", ["silent", "given back"])
def test_a_patient_process_waits_for_another_hosts_owner_that_is_dead(
    ends: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A scheduler starts the run again on another host, seconds after its first process was killed."""
    write(folder, silent=SILENT - 0.5, **ELSEWHERE)
    if ends == "given back":
        monkeypatch.setattr(folder_lock.time, "sleep", lambda seconds: (folder / "run.lock").unlink() if seconds else None)
    else:
        monkeypatch.setattr(folder_lock, "_LOOK", 0.05)
    taken = patient(folder)
    taken.acquire()
    taken.check()
    assert "vita train (y), process" in (said := capsys.readouterr().err) and "gives a sign of life before" in said
    taken.release()


def test_a_patient_process_is_refused_at_the_next_heartbeat(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(folder, silent=15, **ELSEWHERE)
    looks: list[float] = []

    def sleep(seconds: float) -> None:
        nonlocal looks
        looks += [seconds] if seconds else []
        if len(looks) == 3:
            os.utime(folder / "run.lock")

    monkeypatch.setattr(folder_lock.time, "sleep", sleep)
    with pytest.raises(FolderInUse, match="is in use by .*vita train .y., process .* on host node7"):
        patient(folder).acquire()
    assert len(looks) == 3


def test_a_patient_process_does_not_wait_for_a_process_that_it_sees(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(folder)
    monkeypatch.setattr(folder_lock, "_LOOK", float("nan"))  # a wait would fail
    with pytest.raises(FolderInUse, match="is in use"):
        patient(folder).acquire()
