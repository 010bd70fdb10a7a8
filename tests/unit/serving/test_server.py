"""The server's run without a model: what it says when it cannot listen."""

from __future__ import annotations

import os
import signal
import socket
import threading
from contextlib import ExitStack

import pytest
from fastapi import FastAPI

from mindspeed_vita.serving import server
from mindspeed_vita.serving.engine import Engine
from tests.unit.serving.test_engine import CountingLoop


def test_a_server_that_cannot_listen_does_not_say_that_it_does(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    async def fail(*_: object, **__: object) -> None:
        raise OSError("no descriptor is left")

    monkeypatch.setattr(server._Server, "serve", fail)
    with server.bind("127.0.0.1", 0) as bound, pytest.raises(OSError, match="no descriptor is left"):
        server.run(FastAPI(), Engine(CountingLoop()), bound, drain=1, most=1, listening="serving tiny")
    assert "serving tiny" not in capfd.readouterr().err


def test_connections_beyond_those_of_requests_get_a_503(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "_MORE_CONNECTIONS", 0)
    statuses: list[bytes] = []

    def ask(port: int) -> None:
        with ExitStack() as stack:
            connections = [stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=60)) for _ in range(3)]
            for connection in connections[::-1]:
                connection.sendall(b"GET /nothing HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
                statuses.append(connection.recv(12))
                connection.close()
        os.kill(os.getpid(), signal.SIGTERM)

    with server.bind("127.0.0.1", 0) as bound:
        bound.listen()
        asking = threading.Thread(target=ask, args=(bound.getsockname()[1],))
        asking.start()
        server.run(FastAPI(), Engine(CountingLoop()), bound, drain=1, most=1, listening="serving tiny")
        asking.join(60)
    assert statuses[0] == b"HTTP/1.1 503" and statuses[-1] == b"HTTP/1.1 404"
