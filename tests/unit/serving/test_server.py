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
from tests.unit.serving.conftest import until
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


def test_a_server_that_still_loads_holds_its_port() -> None:
    with server.bind("127.0.0.1", 0) as bound:
        port = bound.getsockname()[1]
        with pytest.raises(ValueError, match=rf"--port {port} cannot be had \(Address already in use\); choose another port"):
            server.bind("127.0.0.1", port)


def test_connections_of_a_server_that_has_ended_do_not_hold_its_port() -> None:
    with server.bind("127.0.0.1", 0) as bound:
        port = bound.getsockname()[1]

        def ask() -> None:
            with socket.socket() as connection:
                until(lambda: connection.connect_ex(("127.0.0.1", port)) == 0)
                connection.sendall(b"GET /nothing HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
                while connection.recv(4096):  # the server closes first, so the connection waits on its side
                    pass
            os.kill(os.getpid(), signal.SIGTERM)

        asking = threading.Thread(target=ask)
        asking.start()
        server.run(FastAPI(), Engine(CountingLoop()), bound, drain=1, most=1, listening="serving tiny")
        asking.join(60)
    with server.bind("127.0.0.1", port), pytest.raises(ValueError, match="Address already in use"):
        server.bind("127.0.0.1", port)
