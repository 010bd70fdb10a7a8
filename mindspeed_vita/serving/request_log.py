"""One line of JSON for each request, without its content, and the counters that follow from it."""

from __future__ import annotations

import json
import secrets
import sys
import time
from collections.abc import Callable
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mindspeed_vita.serving.clients import ClientGone
from mindspeed_vita.serving.metrics import Metrics

NOTES = "vita.notes"
"""Where in the scope a request's handlers write what its line shall say."""
GONE = 499
"""The status of a request whose client went away, as nginx writes it."""
QUIET = ("/health", "/ready", "/metrics")
"""Asked every few seconds by machines; they get a line only if something is wrong."""


def print_line(line: dict[str, Any]) -> None:
    """Writes a line to standard error."""
    print(json.dumps(line), file=sys.stderr, flush=True)


class RequestLog:
    """ASGI middleware around the whole application.

    Args:
        app: the application.
        metrics: responses and rejections are counted there.
        write: takes each line.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics, write: Callable[[dict[str, Any]], None] = print_line) -> None:
        self._app, self._metrics, self._write = app, metrics, write

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        notes: dict[str, Any] = {}
        scope[NOTES], start, status = notes, time.monotonic(), 500

        async def noted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], (b"x-request-id", key.encode())]
            await send(message)

        key = secrets.token_hex(8)
        try:
            await self._app(scope, receive, noted)
        except ClientGone:
            status = GONE
            notes.setdefault("code", "client_gone")
        finally:
            route = scope.get("route")
            path = getattr(route, "path", "other")  # a path that does not exist would make a counter of its own
            self._metrics.responses.labels(path, status).inc()
            if status >= 400:
                self._metrics.rejected.labels(notes.get("code") or ("server_error" if status >= 500 else "invalid_request")).inc()
            if status >= 400 or path not in QUIET:
                client = (scope.get("client") or ("",))[0]
                line = {"time": round(time.time(), 3), "request": key, "client": client, "method": scope["method"], "path": path}
                self._write({**line, "status": status, "seconds": round(time.monotonic() - start, 3), **notes})
