"""The other end of a connection: its body within limits, whether it is still there, and a stream of events to it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from mindspeed_vita.serving.errors import ApiError

Found = TypeVar("Found")
_MOST_VALUES = 20_000
"""Numbers, texts, lists and objects of a body: some 5,000 turns of a conversation."""


class ClientGone(Exception):
    """Nobody waits for the response any more."""


async def read_json(request: Request, *, max_bytes: int, max_characters: int, seconds: float) -> Any:
    """The body of a request.

    Args:
        request: whose body was not read.
        max_bytes: of the body.
        max_characters: of all texts of a request.
        seconds: that the body may take to arrive.

    Raises:
        ApiError: 400: no JSON, or too many values. 408: too slow. 413: too large.
        ClientGone: it ended before its body did.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":  # a browser sends this type to another site only after asking it, and this server says no
        raise ApiError(400, f"found the content type {kind!r}; expected application/json")
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared[:20]) > max_bytes:
        raise _too_large(max_bytes)
    try:
        body = await asyncio.wait_for(_read(request, max_bytes), seconds)
    except asyncio.TimeoutError as error:
        raise ApiError(408, f"the body did not arrive within {seconds:g} seconds", code="slow_body") from error
    except ClientDisconnect as error:
        raise ClientGone from error
    return await asyncio.to_thread(_parse, body, max_characters)


async def unless_gone(receive: Receive, work: Awaitable[Found]) -> Found:
    """What the work gives. It is cancelled when the client goes away.

    Args:
        receive: of the request, of which the body was read.
        work: ends by itself if nobody goes away.

    Raises:
        ClientGone: the client went away first.
    """
    task, gone = asyncio.ensure_future(work), asyncio.ensure_future(_left(receive))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise ClientGone
    finally:
        task.cancel()
        gone.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


class EventStream(Response):
    """A response of server-sent events that ends when its client goes away, or takes nothing for too long.

    Args:
        events: as they come. The stream closes them.
        seconds: how long a client may take for one event.
        close: called at the end, also where the events were never begun.
    """

    media_type = "text/event-stream"

    def __init__(self, events: AsyncGenerator[bytes, None], *, seconds: float, close: Callable[[], Awaitable[None]]) -> None:
        super().__init__(headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._events, self._seconds, self._close = events, seconds, close

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await unless_gone(receive, self._send(send))
        finally:
            await self._close()

    async def _send(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        async with aclosing(self._events) as events:
            async for piece in events:
                try:
                    await asyncio.wait_for(send({"type": "http.response.body", "body": piece, "more_body": True}), self._seconds)
                except asyncio.TimeoutError as error:
                    raise ClientGone from error
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _read(request: Request, max_bytes: int) -> bytes:
    pieces, size = [], 0
    async for piece in request.stream():
        size += len(piece)
        if size > max_bytes:
            raise _too_large(max_bytes)
        pieces.append(piece)
    return b"".join(pieces)


async def _left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _parse(body: bytes, max_characters: int) -> Any:
    """The JSON value of a body. Reading and validating many values keeps all threads waiting, so their number is checked first."""
    many = ApiError(400, f"the body has more than the {_MOST_VALUES:,} values that the server allows")
    # each value but the first one comes after one of these; so may each character of a text
    if sum(map(body.count, (b",", b"[", b"{"))) > _MOST_VALUES + max_characters:
        raise many
    try:
        value = json.loads(body, parse_constant=_no_number)
    except (ValueError, RecursionError) as error:
        raise ApiError(400, f"the body is no JSON ({error})") from error
    count, left = 0, [value]
    while left:
        one = left.pop()
        inner = one if isinstance(one, list) else list(one.values()) if isinstance(one, dict) else []
        count += len(inner)
        if count > _MOST_VALUES:
            raise many
        left += inner
    return value


def _no_number(name: str) -> Any:
    raise ValueError(f"{name} is no number of JSON")


def _too_large(max_bytes: int) -> ApiError:
    return ApiError(413, f"the body has more than the {max_bytes:,} bytes that the server allows", code="body_too_large")
