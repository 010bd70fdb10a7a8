"""What one process makes of a pack reaches the other ranks of its host, and so does what went wrong. Nothing is left behind."""

from __future__ import annotations

import errno
import gc
import multiprocessing
import os
import shutil
import signal
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from mindspeed_vita.data import pack_faults, pack_share
from mindspeed_vita.data.pack_share import PackShare, ShareClosed, make_folder, remove_all, remove_folder


@pytest.fixture
def shares(monkeypatch: pytest.MonkeyPatch) -> list[PackShare]:
    """A leader and two followers, all in one thread: a leader that waits for them waits in vain."""
    monkeypatch.setattr(pack_share, "_LAST_WORDS", 0.0)
    folder = make_folder()
    return [PackShare(folder=folder, rank=rank, leader=3, followers=(5, 7)) for rank in (3, 5, 7)]


def left(folder: Path) -> list[str]:
    """What lies in the folder, but for the place for faults."""
    return sorted(path.name for path in folder.iterdir() if path.name != pack_faults.FILE)


def refuse() -> Any:
    pytest.fail("only the leader reads packs")


def test_followers_get_what_the_leader_reads_and_nothing_is_left(shares: list[PackShare]) -> None:
    leader, one, other = [share.open() for share in shares]
    for number in (7, 3):
        assert leader.get(number, lambda number=number: ["pack", number]) == ["pack", number]
    assert [one.get(number, refuse) for number in (7, 3)] == [["pack", 7], ["pack", 3]]
    assert other.get(3, refuse) == ["pack", 3]
    folder = shares[0].folder
    assert left(folder) == ["1.7.for_7"], "a pack goes when its last reader has it"
    shares[2].open()
    assert not left(folder), "what was read ahead goes with the next iteration"
    del one, other, shares[1:]
    gc.collect()
    assert folder.exists(), "its leader is there"
    del leader, shares[0]
    gc.collect()
    assert not folder.exists()


def test_a_follower_waits_for_the_leader(shares: list[PackShare]) -> None:
    leader, follower = shares[0].open(), shares[1].open()
    later = threading.Timer(0.2, leader.get, (5, lambda: "late"))
    later.start()
    assert follower.get(5, refuse) == "late"
    later.join()


def test_iterations_do_not_mix(shares: list[PackShare]) -> None:
    """Although the leader is in the next one, and hands out its packs, before the follower begins it."""
    leader, follower = shares[:2]
    old, late = leader.open(), follower.open()
    new = leader.open()
    old.get(5, lambda: "old")
    new.get(5, lambda: "new")
    assert late.get(5, refuse) == "old"
    old.get(6, lambda: "read ahead")
    assert follower.open().get(5, refuse) == "new"
    assert not list(leader.folder.glob("1.*.for_5"))


@pytest.mark.parametrize("error", [ValueError("rows.jsonl line 3 changed"), OSError(errno.EIO, "rows.jsonl line 3 changed")])
def test_all_ranks_raise_the_leaders_message(shares: list[PackShare], error: Exception) -> None:
    leader, *others = [share.open() for share in shares]

    def fail() -> None:
        raise error

    with pytest.raises(type(error), match="rows.jsonl line 3 changed"):
        leader.get(1, fail)
    for follower in others:
        with pytest.raises(ValueError, match="rows.jsonl line 3 changed"):
            follower.get(1, refuse)


def test_a_fault_of_the_program_is_no_fault_of_the_user_on_any_rank(shares: list[PackShare]) -> None:
    leader, follower = shares[0].open(), shares[1].open()
    with pytest.raises(KeyError):
        leader.get(1, lambda: {}["there is no such key"])
    with pytest.raises(RuntimeError, match="rank 3: KeyError: 'there is no such key'"):
        follower.get(1, refuse)


NO_ROOM = OSError(errno.ENOSPC, "No space left on device")


def fill(monkeypatch: pytest.MonkeyPatch, links: int) -> None:
    """From now on the shared memory is full: no file can be made in it, and only so many links."""
    link, opened, made = os.link, open, [0]

    def no_link(source: Path, target: Path) -> None:
        made[0] += 1
        if made[0] > links:
            raise NO_ROOM
        link(source, target)

    def no_file(path: Any, mode: str = "r", *arguments: Any, **options: Any) -> Any:
        if links == 0 and "w" in mode:
            raise NO_ROOM
        return opened(path, mode, *arguments, **options)

    monkeypatch.setattr(os, "link", no_link)
    monkeypatch.setattr(pack_share, "open", no_file, raising=False)


@pytest.mark.parametrize("links", [0, 1], ids=["no file can be made", "the second link cannot be made"])
def test_no_room_is_told_on_all_ranks_with_the_remedy(shares: list[PackShare], monkeypatch: pytest.MonkeyPatch, links: int) -> None:
    leader, *others = [share.open() for share in shares]
    leader.get(1, lambda: "before")
    fill(monkeypatch, links)
    with pytest.raises(ValueError, match="pack 2 cannot be handed .*No space left on device.*data.tokenize_once=false"):
        leader.get(2, lambda: "large")
    for follower in others:
        assert follower.get(1, refuse) == "before", "it is still there"
        with pytest.raises(ValueError, match="pack 2 cannot be handed .*No space left on device.*data.tokenize_once=false"):
            follower.get(2, refuse)
    assert not left(shares[0].folder)


def test_a_fault_in_the_data_is_told_where_there_is_no_room_for_a_file(shares: list[PackShare], monkeypatch: pytest.MonkeyPatch) -> None:
    """Also by several loader processes, and with a message that is longer than its place."""
    leader, *others = [share.open() for share in shares]
    fill(monkeypatch, 0)

    def fail(number: int) -> Any:
        raise ValueError(f"rows.jsonl line {number}: {'x' * 9000}; correct it")

    for number in (4, 3):
        with pytest.raises(ValueError, match="rows.jsonl"):
            leader.get(number, lambda number=number: fail(number))
    for follower in others:
        for number in (3, 4):
            with pytest.raises(ValueError, match=rf"rows.jsonl line {number}: x+ \.\.\. x+; correct it"):
                follower.get(number, refuse)
    for number in range(5, 40):  # more than there is place for
        with pytest.raises(ValueError, match="rows.jsonl"):
            leader.get(number, lambda number=number: fail(number))


def test_a_folder_for_which_there_is_no_room_is_refused_and_nothing_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other processes of this machine may make such folders meanwhile."""
    make, made = tempfile.mkdtemp, list[str]()

    def noted(*arguments: Any, **options: Any) -> str:
        made.append(make(*arguments, **options))
        return made[-1]

    def full(*arguments: Any) -> None:
        raise NO_ROOM

    monkeypatch.setattr(tempfile, "mkdtemp", noted)
    monkeypatch.setattr(pack_faults, "make_pages", full)
    with pytest.raises(ValueError, match="has no room for the packs .*No space left on device.*data.tokenize_once=false"):
        make_folder()
    assert len(made) == 1 and not Path(made[0]).exists()


def test_who_waits_is_let_go_when_the_iteration_ends(shares: list[PackShare]) -> None:
    follower = shares[1].open()
    threading.Timer(0.1, follower.end).start()
    with pytest.raises(ShareClosed, match="pack 9"):
        follower.get(9, refuse)


def test_all_ranks_stop_where_one_that_leaves_removes_the_folder(shares: list[PackShare]) -> None:
    leader, follower = shares[0].open(), shares[1].open()
    remove_all()
    assert not shares[0].folder.exists()
    with pytest.raises(ShareClosed, match="another rank of this host has ended"):
        leader.get(1, lambda: "pack")
    with pytest.raises(ShareClosed):
        follower.get(1, refuse)


def _lead(pipe: Any) -> None:
    pipe.send(make_folder())
    signal.pause()


def test_a_leader_that_was_killed_is_missed_and_its_folder_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pack_share, "_LEADER_LOOK", 0.05)
    here, there = multiprocessing.get_context("spawn").Pipe()
    process = multiprocessing.get_context("spawn").Process(target=_lead, args=(there,))
    process.start()
    folder: Path = here.recv()
    follower = PackShare(folder=folder, rank=1, leader=0, followers=(1,)).open()
    living = make_folder()
    assert folder.is_dir(), "its leader lives"
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    with pytest.raises(ValueError, match="rank 0, which reads pack 2 for all ranks of this host that need it, has ended"):
        follower.get(2, refuse)
    assert folder.is_dir()
    remove_folder(make_folder())
    assert not folder.exists() and living.is_dir(), "only what was left behind is removed"
    remove_folder(living)


def test_leaders_that_start_at_once_may_remove_the_same_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    """One has found it, the other removes it, and the first looks at it."""
    found = Path.glob
    gone = Path("/dev/shm") / f"vita_packs_{os.getuid()}_gone"
    monkeypatch.setattr(Path, "glob", lambda self, pattern: [gone, *found(self, pattern)])
    remove_folder(make_folder())


def test_a_follower_that_comes_late_still_hears_of_a_fault(shares: list[PackShare], monkeypatch: pytest.MonkeyPatch) -> None:
    """The process that met it ends, and its folder with it."""
    monkeypatch.setattr(pack_share, "_LAST_WORDS", 60.0)
    leader, *others = [share.open() for share in shares]

    def fail() -> Any:
        raise ValueError("data.jsonl:3 is not the row that was indexed")

    def lead() -> None:
        with pytest.raises(ValueError, match="data.jsonl:3"):
            leader.get(4, fail)
        shutil.rmtree(shares[0].folder)

    process = threading.Thread(target=lead)
    process.start()
    time.sleep(0.3)
    for other in others:
        with pytest.raises(ValueError, match="data.jsonl:3 is not the row"):
            other.get(4, refuse)
    process.join(30)
    assert not process.is_alive() and not shares[0].folder.exists()
