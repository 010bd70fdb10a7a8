"""Every rank holds a connection to the first one, so that the end of any process is seen at once, whatever the others wait for.

The kernel closes a dead process's connection, also after kill -9, and TCP's keepalive finds a host that is gone. Nothing here depends on
collectives, which may wait for half an hour, or on the interpreter of a rank that hangs.
"""

from __future__ import annotations

import os
import platform
import re
import resource
import secrets
import selectors
import socket
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Optional

import torch.distributed as dist

LOST = 77
"""Exit status: another process of the run ended without a word, and this one with it."""
_GRACE = 20.0
"""Seconds that a rank has to end by itself after another one has failed."""
_SECOND_LOOK = 5.0
"""Seconds in which the cause of a broken collective is heard of."""
_CONNECT = 60.0
"""Seconds to reach the first rank."""
_PROBES = 4
"""Questions that a host may leave without an answer."""
_LONGEST_GREETING = 4096
"""Bytes of a first line. Whoever sends more is no rank."""
Heard = Callable[[int, str], None]
"""Told the rank that a word came from, and the word."""


class Lifeline:
    """One rank's end. Words are single lines; `failed N` and `done` are its own, the others are passed on to `heard`.

    Args:
        rank: of this process.
        world: processes of the run.
        store: the process group's store.
        leave: ends this process: (status, line to print or ""). It does not return.
        heard: called in the lifeline's thread for any other word. On the first rank: the words of others; elsewhere: its.
        lost_after: seconds after which a host that does not answer is taken for gone.
    """

    def __init__(
        self, rank: int, world: int, store: Any, leave: Callable[[int, str], None], heard: Heard, *, lost_after: float = 30.0
    ) -> None:
        self._lost_after = lost_after
        self.rank, self.world, self._leave, self._heard = rank, world, leave, heard
        self._peers: dict[int, socket.socket] = {}
        """On the first rank all others, elsewhere the first rank alone."""
        self._names: dict[int, str] = {}
        self._quiet: set[int] = set()
        """Ranks whose end is no news: they said that they are done, or what went wrong."""
        self._status: Optional[int] = None
        """What this process ends with because of another one, once that is known."""
        self._known = threading.Event()
        self._ending = False
        self._last = ""
        """What was said last."""
        self._closed = False
        self._lock = threading.Lock()
        self._server: Optional[socket.socket] = None
        if world == 1:
            return
        os.register_at_fork(after_in_child=self._forget)
        self._first_host = os.environ.get("LOCAL_WORLD_SIZE") or "-"  # as torchrun sets it; a guess until the first rank tells its own
        key = f"vita/lifeline/{store.add(f'vita/lifeline/turns/{rank}', 1)}"  # a group may serve several runs
        if rank == 0:
            _allow_files(world)
            dual = socket.has_dualstack_ipv6()
            family = socket.AF_INET6 if dual else socket.AF_INET
            self._server = socket.create_server(("", 0), family=family, dualstack_ipv6=dual, backlog=min(world, 4096))
            self._token = secrets.token_hex(8)
            address = os.environ.get("MASTER_ADDR", "127.0.0.1")
            store.set(key, f"{address} {self._server.getsockname()[1]} {self._token} {self._first_host}")
            threading.Thread(target=self._serve, name="vita-lifeline", daemon=True).start()
            return
        try:
            address, port, token, self._first_host = store.get(key).decode().split()
        except dist.DistNetworkError:  # the first process, which keeps the store, is gone already
            self._end(LOST, _gone_line("rank 0") if self.speaks_of(0) else "")
            raise
        try:
            peer = socket.create_connection((address, int(port)), timeout=_CONNECT)
        except OSError as error:
            _warn(f"rank {rank} cannot reach the first one at {address}:{port} ({error})")
            return
        _keep_alive(peer, self._lost_after)
        self._peers[0] = peer
        self._names[0] = f"rank 0 (host {address})"
        self._send(0, f"{token} {rank} {platform.node() or '-'} {os.getpid()}")
        threading.Thread(target=self._follow, args=(peer,), name="vita-lifeline", daemon=True).start()

    def _forget(self) -> None:
        """In a forked process, such as a loader's: its copy of a connection would outlive this one."""
        for held in (self._server, *self._peers.values()):
            if held is not None:
                held.close()

    def say(self, word: str) -> None:
        """Sends a word to the first rank; on the first rank, to all others."""
        self._last = word
        for rank in list(self._peers):
            self._send(rank, word)

    def name(self, rank: int) -> str:
        """A rank with its host and process, as far as they are known."""
        return self._names.get(rank, f"rank {rank}")

    def close(self) -> None:
        """The work is done, and this process goes on by itself."""
        self._closed = True
        self.say("done")

    def failed(self, status: int, *, broken: bool) -> None:
        """This process is about to end with an error. The others end too, if they do not do so by themselves.

        Args:
            status: its exit status.
            broken: the error may be the consequence of another process's end. If it is, this call ends the process and does not return.
        """
        if broken and self.world > 1 and self._known.wait(_SECOND_LOOK) and self._status is not None:
            if self._ending:  # the lifeline's thread says why, and ends the process
                time.sleep(_GRACE)
            self._leave(self._status, "")
        self._closed = True
        self.say(f"failed {status}")

    def _serve(self) -> None:
        """The first rank's thread."""
        server, selector = self._server, selectors.DefaultSelector()
        assert server is not None
        selector.register(server, selectors.EVENT_READ, None)
        texts: dict[socket.socket, bytes] = {}
        while True:
            for key, _ in selector.select():
                if key.fileobj is server:
                    try:
                        peer, _ = server.accept()
                    except OSError as error:  # such as too many open files
                        selector.unregister(server)
                        _warn(f"no further process can connect to the first one ({error})")
                        continue
                    _keep_alive(peer, self._lost_after)
                    peer.setblocking(True)
                    selector.register(peer, selectors.EVENT_READ, None)
                    texts[peer] = b""
                    continue
                peer = key.fileobj  # type: ignore[assignment]
                received = _receive(peer)
                *lines, texts[peer] = (texts[peer] + received).split(b"\n")
                rank = key.data
                if rank is None and (lines or len(texts[peer]) > _LONGEST_GREETING):
                    rank = self._greet(peer, lines.pop(0)) if lines else None
                    if rank is None:  # a stranger
                        selector.unregister(peer)
                        texts.pop(peer)
                        peer.close()
                        continue
                    selector.modify(peer, selectors.EVENT_READ, rank)
                for line in lines:
                    self._take(rank, line.decode(errors="replace"))
                if not received:
                    selector.unregister(peer)
                    self._peers.pop(rank, None)
                    if rank is not None and rank not in self._quiet:
                        self._gone(rank)

    def _greet(self, peer: socket.socket, line: bytes) -> Optional[int]:
        """The rank that a first line is of; None where it does not know the run's word, which the store gave to every rank."""
        found = re.fullmatch(rb"(\w+) (\d+) ([!-~]+) (\d+)", line)
        if found is None or not secrets.compare_digest(found[1], self._token.encode()):
            return None
        rank = int(found[2])
        self._names[rank] = f"rank {rank} (process {found[4].decode()} on {found[3].decode()})"
        self._peers[rank] = peer
        if self._last:  # it comes late
            self._send(rank, self._last)
        return rank

    def _follow(self, peer: socket.socket) -> None:
        """The thread of every other rank."""
        text = b""
        while received := _receive(peer):
            *lines, text = (text + received).split(b"\n")
            for line in lines:
                self._take(0, line.decode(errors="replace"))
        if 0 not in self._quiet:
            self._gone(0)

    def _take(self, rank: int, word: str) -> None:
        kind, _, rest = word.partition(" ")
        if kind == "done":
            self._quiet.add(rank)
        elif kind == "failed":
            self._quiet.add(rank)
            if self.rank == 0:
                self.say(word)
            self._end_soon(int(rest))
        elif kind == "leave":
            self._end(int(rest), "")
        else:
            self._heard(rank, word)

    def _gone(self, rank: int) -> None:
        """A process ended without a word."""
        if self._closed or self._status is not None:
            return
        line = _gone_line(self.name(rank))
        if self.rank == 0:
            self._quiet.update(self._peers)
            self.say(f"leave {LOST}")
        self._end(LOST, line if self.speaks_of(rank) else "")

    def speaks_of(self, silent: int) -> bool:
        """Whether this rank says that another one is gone or silent. Where it is the first one, its whole host may be.

        Then the second rank speaks, and the first one of the next host: ranks count on from host to host, so its number is that of the
        processes on the first host.
        """
        return self.rank == 1 or str(self.rank) == self._first_host if silent == 0 else self.rank == 0

    def _end_soon(self, status: int) -> None:
        if self._status is None:
            self._status = status
            self._known.set()
            timer = threading.Timer(_GRACE, lambda: None if self._closed else self._leave(status, ""))
            timer.daemon = True
            timer.start()

    def _end(self, status: int, line: str) -> None:
        if not self._closed:
            self._status, self._ending = status, True
            self._known.set()
            self._leave(status, line)

    def _send(self, rank: int, word: str) -> None:
        peer = self._peers.get(rank)
        if peer is None:
            return
        with self._lock, suppress(OSError):  # it is gone, and the thread that reads finds out
            peer.sendall(word.encode() + b"\n")


def _gone_line(name: str) -> str:
    return (
        f"vita: error: {name} ended without a word: it was killed, ran out of memory, or its host or the network to it is "
        "gone; all other processes end too, and the same command continues from the last checkpoint"
    )


def _warn(reason: str) -> None:
    print(f"vita: {reason}; if a process dies, others notice it by their collectives' time-outs only", file=sys.stderr, flush=True)


def _allow_files(number: int) -> None:
    """Raises this process's limit of open files, which is usually 1,024, by a number, as far as it may."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = soft + number if hard == resource.RLIM_INFINITY else min(soft + number, hard)
    if soft != resource.RLIM_INFINITY:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _receive(peer: socket.socket) -> bytes:
    try:
        return peer.recv(4096)
    except OSError:  # reset, or timed out by keepalive
        return b""


def _keep_alive(peer: socket.socket, lost_after: float) -> None:
    """The kernel asks a silent host whether it is there, and ends the connection after so many seconds, also while a word is on its way.

    Source: tcp(7), TCP_KEEPIDLE, TCP_KEEPINTVL, TCP_KEEPCNT and TCP_USER_TIMEOUT. On systems without them the kernel's own times hold.
    """
    pause = max(1, round(lost_after / (_PROBES + 2)))
    idle = max(1, round(lost_after) - pause * _PROBES)
    peer.settimeout(None)
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    options = {"TCP_KEEPIDLE": idle, "TCP_KEEPINTVL": pause, "TCP_KEEPCNT": _PROBES, "TCP_USER_TIMEOUT": round(1000 * lost_after)}
    for name, value in options.items():
        if hasattr(socket, name):
            peer.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
