"""Runs the application: listens, drains at a signal, and ends when the model stops working."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import signal
import socket
import sys
from collections.abc import Iterator
from typing import Any

import uvicorn
from fastapi import FastAPI

from mindspeed_vita.serving.engine import Engine

_LOOK = 0.1
"""Seconds between two looks at the engine."""
_LAST_WORDS = 3.0
"""How long a failed server still says so at /health, before it ends."""
_MORE_CONNECTIONS = 64
"""Connections beyond those of requests: the page, and who asks for the server's state."""
_CLOSING = 5
"""Seconds for the last bytes of responses."""


def bind(host: str, port: int) -> socket.socket:
    """A socket that is bound, and listens only once the model is loaded. No other process can bind the same address meanwhile.

    Raises:
        ValueError: the address cannot be had.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        try:
            return _bound(socket.socket(family, kind, protocol), address, reuse=False)
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
        # perhaps only connections of a server that has ended hold the address
        return _bound(socket.socket(family, kind, protocol), address, reuse=True)
    except OSError as error:
        raise ValueError(f"--host {host} --port {port} cannot be had ({error.strerror}); choose another port or host") from error


def _bound(found: socket.socket, address: Any, *, reuse: bool) -> socket.socket:
    """The socket, bound so that nobody else can bind the address, also where it does not listen yet.

    Linux lets two sockets that do not listen share an address if both have SO_REUSEADDR while they are bound (inet_csk_get_port).
    So the option is set for no longer than it is needed.
    """
    try:
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, int(reuse))
        found.bind(address)
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)
    except OSError:
        found.close()
        raise
    return found


def run(app: FastAPI, engine: Engine, bound: socket.socket, *, drain: float, most: int, listening: str) -> None:
    """Serves until SIGTERM or SIGINT, then lets what runs finish.

    Args:
        app: the application.
        engine: its engine.
        bound: where to listen.
        drain: seconds that running requests have to finish after the signal.
        most: requests that the engine takes at once; twice as many connections are kept, and some for those who look at the server's state.
        listening: printed once requests are taken.

    Raises:
        RuntimeError: the model stopped working.
    """
    asyncio.run(_run(app, engine, bound, drain, most, listening))
    if engine.failure is not None:
        raise RuntimeError("the model stopped working; the requests that waited got a 503") from engine.failure


class _Server(uvicorn.Server):
    """Signals are ours."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


async def _run(app: FastAPI, engine: Engine, bound: socket.socket, drain: float, most: int, listening: str) -> None:
    config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        timeout_graceful_shutdown=_CLOSING,
        lifespan="off",
        limit_concurrency=2 * most + _MORE_CONNECTIONS,
    )
    server = _Server(config)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # its connections inherit it, and a server after this one can be bound
    asked = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, asked.set)
    serving = asyncio.ensure_future(server.serve(sockets=[bound]))
    while not server.started and not serving.done():
        await asyncio.sleep(_LOOK)
    if server.started:
        print(listening, file=sys.stderr, flush=True)
    while engine.alive and not asked.is_set() and not serving.done():
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(asked.wait(), _LOOK)
    if engine.alive:
        print(f"vita serve: no new requests; those that run have {drain:g} seconds to finish", file=sys.stderr, flush=True)
        await asyncio.to_thread(engine.drain, drain)
    else:
        await asyncio.sleep(_LAST_WORDS)
    server.should_exit = True
    await serving
