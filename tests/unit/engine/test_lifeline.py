"""The connections between the ranks: every end is heard of, whatever it is, and the end of one's own work is no news."""

from __future__ import annotations

import os
import queue
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist

from mindspeed_vita.engine import lifeline
from mindspeed_vita.engine.lifeline import LOST, Lifeline


class First:
    """The first of several ranks, in this process; the others are forked."""

    def __init__(self, folder: Path, world: int) -> None:
        self.folder, self.world = folder, world
        self.left: queue.Queue[tuple[int, str]] = queue.Queue()
        self.words: queue.Queue[tuple[int, str]] = queue.Queue()
        self.children: list[int] = []
        self.line = Lifeline(0, world, self._store(), lambda *end: self.left.put(end), lambda *word: self.words.put(word))

    def _store(self) -> Any:
        return dist.FileStore(str(self.folder / "store"), self.world)

    def fork(self, rank: int, work: Callable[[Lifeline], Any]) -> int:
        """Another rank, which ends with the status that its lifeline ends it with, or with 0 after its work."""
        child = os.fork()
        if not child:
            try:
                line = Lifeline(rank, self.world, self._store(), lambda status, told: os._exit(status), lambda *word: None)
                work(line)
            finally:
                os._exit(0)
        self.children.append(child)
        return child


@pytest.fixture
def first(tmp_path: Path) -> Iterator[Callable[[int], First]]:
    made: list[First] = []

    def make(world: int) -> First:
        made.append(First(tmp_path, world))
        return made[-1]

    yield make
    for group in made:
        group.line.close()
        for child in group.children:
            if os.waitpid(child, os.WNOHANG)[0] == 0:
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)


def exit_status(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_a_rank_that_is_killed_is_named_although_its_own_children_live_on(first):
    group = first(2)
    reads, writes = os.pipe()

    def with_a_child(line: Lifeline) -> None:
        os.close(writes)
        if not os.fork():
            os.setsid()
            os.read(reads, 1)  # until this test closes the other end
            os._exit(0)
        time.sleep(60)

    child = group.fork(1, with_a_child)
    while 1 not in group.line._names:
        time.sleep(0.01)
    time.sleep(0.3)
    os.kill(child, signal.SIGKILL)
    status, line = group.left.get(timeout=60)
    assert status == LOST and f"rank 1 (process {child} on " in line and "ended without a word" in line
    os.close(writes)
    os.close(reads)


def test_the_others_are_told_to_leave(first):
    group = first(3)
    dies, waits = group.fork(1, lambda line: time.sleep(60)), group.fork(2, lambda line: time.sleep(60))
    while len(group.line._names) < 2:
        time.sleep(0.01)
    os.kill(dies, signal.SIGKILL)
    assert group.left.get(timeout=20)[0] == LOST
    group.children.remove(waits)
    assert exit_status(waits) == LOST


def test_an_error_that_was_reported_ends_the_others_with_its_status_and_no_further_word(first, monkeypatch):
    monkeypatch.setattr(lifeline, "_GRACE", 0.2)
    group = first(3)
    group.fork(1, lambda line: line.failed(2, broken=False))
    waits = group.fork(2, lambda line: time.sleep(60))
    assert group.left.get(timeout=20) == (2, "")
    group.children.remove(waits)
    assert exit_status(waits) == 2


def test_a_broken_collective_is_blamed_on_the_rank_that_failed(first, monkeypatch):
    monkeypatch.setattr(lifeline, "_GRACE", 60.0)
    group = first(3)
    group.fork(1, lambda line: line.failed(2, broken=False))

    def broken(line: Lifeline) -> None:
        line.failed(1, broken=True)
        os._exit(9)

    breaks = group.fork(2, broken)
    group.children.remove(breaks)
    assert exit_status(breaks) == 2


def test_ranks_that_are_done_may_leave_in_any_order(first):
    group = first(3)
    done, words = group.fork(1, lambda line: line.close()), group.fork(2, lambda line: (line.say("a word"), line.close()))
    assert group.words.get(timeout=20) == (2, "a word")
    for child in (done, words):
        group.children.remove(child)
        assert exit_status(child) == 0
    time.sleep(0.3)
    assert group.left.empty()


def test_a_stranger_is_no_rank(first):
    group = first(2)
    with socket.create_connection(("127.0.0.1", group.line._server.getsockname()[1])) as stranger:
        stranger.sendall(b"0000 1 host 7\nfailed 2\n")
    time.sleep(0.3)
    assert not group.line._names and group.left.empty()


@pytest.mark.parametrize("sent", [b"guess 1 host 7\n", b"\xff\xfe\n", b"0123456789abcdef one host 7\n", b"x" * 100_000, b""])
def test_a_stranger_is_dropped_and_the_ranks_go_on(first, sent):
    group = first(2)
    child = group.fork(1, lambda line: (line.say("a word"), time.sleep(60)))
    assert group.words.get(timeout=20) == (1, "a word")
    with socket.create_connection(("127.0.0.1", group.line._server.getsockname()[1]), timeout=20) as stranger:
        with suppress(OSError):  # it may be dropped before all is sent
            stranger.sendall(sent)
        if sent:
            with suppress(ConnectionResetError):
                assert stranger.recv(1) == b"", "the connection is closed"
    os.kill(child, signal.SIGKILL)
    status, line = group.left.get(timeout=20)
    assert status == LOST and "rank 1 (process" in line, "the first rank still listens"


def test_a_first_process_that_is_gone_before_anybody_is_connected_ends_the_others():
    class Gone:
        def add(self, *_):
            return 1

        def get(self, *_):
            raise dist.DistNetworkError("Connection was likely closed.")

    left: list[tuple[int, str]] = []
    for rank in (1, 2):
        with pytest.raises(dist.DistNetworkError):  # here `leave` returns
            Lifeline(rank, 3, Gone(), lambda *end: left.append(end), lambda *_: None)
    assert [status for status, _ in left] == [LOST, LOST]
    assert "rank 0 ended without a word" in left[0][1] and not left[1][1]


@pytest.mark.skipif(not hasattr(socket, "TCP_USER_TIMEOUT"), reason="this system has no such option")
@pytest.mark.parametrize("seconds", [6, 30, 300])
def test_a_silent_host_is_gone_after_the_seconds_that_the_recipe_says(seconds, tmp_path):
    store = dist.FileStore(str(tmp_path / "store"), 2)
    nothing: Any = lambda *_: None  # noqa: E731
    first = Lifeline(0, 2, store, nothing, nothing, lost_after=seconds)
    second = Lifeline(1, 2, dist.FileStore(str(tmp_path / "store"), 2), nothing, nothing, lost_after=seconds)
    deadline = time.monotonic() + 20
    while 1 not in first._peers and time.monotonic() < deadline:
        time.sleep(0.01)
    for peer in (first._peers[1], second._peers[0]):
        names = ("TCP_KEEPIDLE", "TCP_KEEPINTVL", "TCP_KEEPCNT", "TCP_USER_TIMEOUT")
        idle, pause, probes, longest = (peer.getsockopt(socket.IPPROTO_TCP, getattr(socket, name)) for name in names)
        assert idle + pause * probes == seconds and longest == 1000 * seconds
    second.close()
    first.close()


@pytest.mark.parametrize("hosts", [(2, 2), (3, 2), (2, 3), (1, 3)], ids=str)
def test_the_end_of_the_first_host_is_told_by_the_next_one(hosts: tuple[int, int], tmp_path: Path) -> None:
    """Ranks on two hosts. Those of the first host end in the same moment, as with their container."""
    first, world = hosts[0], sum(hosts)

    def run(rank: int) -> None:
        os.environ["LOCAL_WORLD_SIZE"] = str(hosts[rank >= first])

        def leave(status: int, told: str) -> None:
            (tmp_path / f"left-{rank}").write_text(told)
            os._exit(status)

        line = Lifeline(rank, world, dist.FileStore(str(tmp_path / "store"), world), leave, lambda *word: None)
        while rank == 0 and len(line._names) < world - 1:
            time.sleep(0.01)
        (tmp_path / f"there-{rank}").touch()
        time.sleep(60)

    children = []
    for rank in range(world):
        children.append(os.fork())
        if not children[-1]:
            try:
                run(rank)
            finally:
                os._exit(0)
    for _ in range(6000):
        if len(list(tmp_path.glob("there-*"))) == world:
            break
        time.sleep(0.01)
    else:
        pytest.fail("the ranks did not connect")
    os.kill(children[0], signal.SIGSTOP)  # it must not hear of the others' end
    for child in children[first - 1 :: -1]:
        os.kill(child, signal.SIGKILL)
    assert [exit_status(child) for child in children[first:]] == [LOST] * hosts[1]
    assert [exit_status(child) for child in children[:first]] == [-signal.SIGKILL] * first
    told = {rank: (tmp_path / f"left-{rank}").read_text() for rank in range(first, world)}
    assert "rank 0 (host " in told[first] and "ended without a word" in told[first]
    assert not any(told[rank] for rank in range(first + 1, world))
