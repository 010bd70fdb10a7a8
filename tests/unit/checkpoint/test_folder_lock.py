"""One process a folder: the lock names its owner, a dead owner's is taken over, another host's goes by the file server's clock."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from mindspeed_vita.checkpoint import folder_lock
from mindspeed_vita.checkpoint.folder_lock import SILENT, FolderInUse, FolderLock, Owner

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "runs" / "a"


def lock(folder: Path) -> FolderLock:
    return FolderLock(folder / "run.lock", folder=folder, work="vita train (x)", advice="choose another folder, or wait")


def write(folder: Path, *, silent: float = 0.0, **changes: Any) -> Owner:
    """Another's lock."""
    folder.mkdir(parents=True, exist_ok=True)
    owner = replace(Owner.this_process("vita train (y)"), **changes)
    (folder / "run.lock").write_text(json.dumps(asdict(owner)))
    beat = (folder / "run.lock").stat().st_mtime - silent
    os.utime(folder / "run.lock", (beat, beat))
    return owner


@pytest.fixture
def ended_process() -> int:
    """The id of a process that is gone."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


ELSEWHERE = {"host": "node7", "kernel": "another boot"}


def test_a_second_run_is_told_who_is_there(folder: Path) -> None:
    first = lock(folder)
    first.acquire()
    with pytest.raises(FolderInUse) as refused:
        lock(folder).acquire()
    who = f"vita train (x), process {os.getpid()} on host {os.uname().nodename}"
    parts = (str(folder), who, "choose another folder", f"kill {os.getpid()}")
    assert all(part in str(refused.value) for part in parts)
    first.release()
    assert not folder.exists(), "made for the lock, and nothing came"
    lock(folder).acquire()


DIES = """
import os
import sys
from pathlib import Path

from mindspeed_vita.checkpoint import folder_lock

moment = int(sys.argv[2])

def count(event, arguments):
    global moment
    if event in ("open", "os.remove") and ".lock" in str(arguments[0]):
        moment -= 1
        if moment < 0:
            os._exit(9)

sys.addaudithook(count)
path = Path(sys.argv[1]) / "run.lock"
folder_lock.FolderLock(path, folder=path.parent, work="vita train (z)", advice="wait").acquire()
os._exit(0)
"""


def test_a_process_that_dies_at_any_moment_of_taking_over_keeps_nobody_out_and_leaves_nothing(folder: Path, ended_process: int) -> None:
    for moment in range(40):
        write(folder, pid=ended_process)
        ended = subprocess.run([sys.executable, "-c", DIES, str(folder), str(moment)], cwd=ROOT, timeout=60).returncode
        taken = lock(folder)
        taken.acquire()
        assert [path.name for path in folder.iterdir()] == ["run.lock"]
        taken.release()
        if ended == 0:
            assert moment > 5, "it dies at several moments"
            return
    raise AssertionError("it never lived long enough to take the lock")


def test_takers_that_die_one_after_the_other_keep_nobody_out(folder: Path, ended_process: int) -> None:
    write(folder, pid=ended_process)
    for _ in range(2):
        code = DIES.replace('os._exit(9)', 'os._exit(9) if list(path.parent.glob(".run.lock.over-*")) else None')
        assert subprocess.run([sys.executable, "-c", code, str(folder), "5"], cwd=ROOT, timeout=60).returncode == 9
    assert list(folder.glob(".run.lock.over-*"))
    lock(folder).acquire()
    assert [path.name for path in folder.iterdir()] == ["run.lock"]


def test_a_folder_that_was_used_stays(folder: Path) -> None:
    held = lock(folder)
    held.acquire()
    (folder / "metrics.jsonl").touch()
    held.release()
    assert [path.name for path in folder.iterdir()] == ["metrics.jsonl"]


def test_the_lock_of_a_dead_process_is_taken_over_at_once(folder: Path, ended_process: int, capsys: pytest.CaptureFixture[str]) -> None:
    write(folder, pid=ended_process)
    taken = lock(folder)
    taken.acquire()
    assert json.loads((folder / "run.lock").read_text())["pid"] == os.getpid()
    assert f"took over {folder} from vita train (y), process {ended_process}" in capsys.readouterr().err
    assert [path.name for path in folder.iterdir()] == ["run.lock"]


def test_a_process_that_has_the_dead_ones_id_is_not_taken_for_it(folder: Path) -> None:
    write(folder, pid=os.getpid(), started="1")
    lock(folder).acquire()


def test_a_zombie_is_dead(folder: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", ""])
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    write(folder, pid=process.pid, started="1")
    lock(folder).acquire()
    process.wait()


def test_a_silent_process_of_this_host_still_holds_it(folder: Path) -> None:
    write(folder, silent=10 * SILENT)
    with pytest.raises(FolderInUse, match="last sign of life 3000 s ago"):
        lock(folder).acquire()


def test_another_hosts_lock_is_refused_with_the_command_to_run(folder: Path, ended_process: int) -> None:
    write(folder, pid=ended_process, silent=40, **ELSEWHERE)
    then = rf"the next start takes the lock over in 2[56]\d s; to start now, run: rm {folder}/run.lock"
    message = rf"process {ended_process} on host node7.* {then}"
    with pytest.raises(FolderInUse, match=message):
        lock(folder).acquire()


def test_another_hosts_lock_is_taken_over_after_its_silence(folder: Path) -> None:
    write(folder, silent=SILENT + 10, **ELSEWHERE)
    lock(folder).acquire()


def test_a_container_of_this_host_counts_as_another_host(folder: Path) -> None:
    boot = Owner.this_process("").kernel.split()[0]
    write(folder, pid=1, started="1", kernel=f"{boot} pid:[1]")
    with pytest.raises(FolderInUse, match="if that process is gone"):
        lock(folder).acquire()


def test_clocks_of_hosts_may_differ(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(folder, **ELSEWHERE)
    now = time.time()
    for skew in (-1e6, 1e6):
        monkeypatch.setattr(time, "time", lambda skew=skew: now + skew)
        with pytest.raises(FolderInUse, match=r"last sign of life \d s ago"):
            lock(folder).acquire()


def test_a_lock_that_is_still_empty_counts_as_held_until_it_is_old(folder: Path) -> None:
    folder.mkdir(parents=True)
    path = folder / "run.lock"
    path.touch()
    with pytest.raises(FolderInUse, match="a process that did not write its name"):
        lock(folder).acquire()
    os.utime(path, (1, 1))
    lock(folder).acquire()


def test_an_owner_that_lost_its_lock_finds_out_and_leaves_the_other_alone(folder: Path) -> None:
    slow = lock(folder)
    slow.acquire()
    slow.check()
    other = write(folder, **ELSEWHERE)
    with pytest.raises(FolderInUse, match="was taken over by vita train .y., process .* on host node7"):
        slow.check()
    slow.release()
    assert json.loads((folder / "run.lock").read_text())["token"] == other.token


def test_an_owner_whose_file_was_deleted_takes_it_again(folder: Path) -> None:
    held = lock(folder)
    held.acquire()
    (folder / "run.lock").unlink()
    held.check()
    with pytest.raises(FolderInUse):
        lock(folder).acquire()


def test_an_owner_that_slept_while_another_came_and_went_stops(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slow = lock(folder)
    slow.acquire()
    os.utime(folder / "run.lock", (1, 1))
    monkeypatch.setattr(Owner, "can_be_looked_up", False)  # as from another host
    other = lock(folder)
    other.acquire()
    (folder / "metrics.jsonl").touch()
    other.release()
    woken = folder_lock._clock() + SILENT
    monkeypatch.setattr(folder_lock, "_clock", lambda: woken)
    with pytest.raises(FolderInUse, match="was taken over by another process"):
        slow.check()
    assert [path.name for path in folder.iterdir()] == ["metrics.jsonl"]


@pytest.mark.parametrize("may_signal", [False, True], ids=["user", "root of a container"])
@pytest.mark.parametrize("error", [FileNotFoundError, PermissionError], ids=["hidepid=2", "hidepid=1"])
def test_another_users_process_that_proc_hides_goes_by_its_heartbeat(
    folder: Path, monkeypatch: pytest.MonkeyPatch, error: type[OSError], may_signal: bool
) -> None:
    def hidden(path: Any, *arguments: Any, **keywords: Any) -> Any:
        if str(path).startswith(f"/proc/{os.getppid()}/"):
            raise error(path)
        return open(path, *arguments, **keywords)

    def kill(pid: int, number: int) -> None:
        assert (pid, number) == (os.getppid(), 0)
        if not may_signal:
            raise PermissionError(pid)

    monkeypatch.setattr(folder_lock, "open", hidden, raising=False)
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    monkeypatch.setattr(os, "kill", kill)
    write(folder, pid=os.getppid(), silent=40)
    with pytest.raises(FolderInUse, match="last sign of life 40 s ago.*if that process is gone"):
        lock(folder).acquire()
    write(folder, pid=os.getppid(), silent=SILENT + 10)
    lock(folder).acquire()


def test_a_lock_that_cannot_be_written_is_not_left_behind(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder.mkdir(parents=True)

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space left"):
            lock(folder).acquire()
    assert list(folder.iterdir()) == []
    lock(folder).acquire()


def test_a_lock_beats_until_it_is_released(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folder_lock, "BEAT", 0.02)
    held = lock(folder)
    held.acquire()
    first = held._last_beat

    def beats() -> bool:
        os.utime(folder / "run.lock", (1, 1))
        deadline = time.monotonic() + 20
        while (folder / "run.lock").stat().st_mtime == 1 and time.monotonic() < deadline:
            time.sleep(0.01)
        return (folder / "run.lock").stat().st_mtime > 1

    assert beats()
    deadline = time.monotonic() + 20
    while held._last_beat == first and time.monotonic() < deadline:
        time.sleep(0.01)
    assert held._last_beat > first
    write(folder, silent=1000, **ELSEWHERE)
    os.utime(folder / "run.lock", (1, 1))
    time.sleep(0.2)
    assert (folder / "run.lock").stat().st_mtime == 1, "no beat for another's lock"
    held.release()


RACE = """
import sys, time
from pathlib import Path
from mindspeed_vita.checkpoint.folder_lock import FolderInUse, FolderLock

folder = Path(sys.argv[1])
print("ready", flush=True)
for line in sys.stdin:
    lock = FolderLock(folder / line.strip() / "run.lock", folder=folder, work="race", advice="wait")
    try:
        lock.acquire()
        print("won", flush=True)
    except FolderInUse:
        print("lost", flush=True)
"""


def test_of_many_that_find_a_dead_owner_one_takes_over(tmp_path: Path, ended_process: int) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", RACE, str(tmp_path)]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True}
    racers = [subprocess.Popen(command, env=environment, **pipes) for _ in range(4)]
    try:
        assert [racer.stdout.readline() for racer in racers] == ["ready\n"] * 4
        for turn in range(40):
            write(tmp_path / str(turn), pid=ended_process)
            for racer in racers:
                racer.stdin.write(f"{turn}\n")
                racer.stdin.flush()
            said = sorted(racer.stdout.readline().strip() for racer in racers)
            assert said == ["lost", "lost", "lost", "won"], turn
    finally:
        for racer in racers:
            racer.kill()
            racer.communicate()


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"file/run: the folder cannot be made \(Not a directory\); name one that can be written"):
        lock(tmp_path / "file" / "run").acquire()


def test_a_full_disk_names_the_lock_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    lock = FolderLock(tmp_path / "run.lock", folder=tmp_path, work="a test", advice="wait")
    with pytest.raises(OSError, match=r"cannot be written \(No space left on device\)"):
        lock.acquire()
    assert not list(tmp_path.iterdir()), "an empty lock would keep everybody out"
