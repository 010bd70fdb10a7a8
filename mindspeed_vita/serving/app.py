"""The HTTP application: its paths, who may use them, and errors in OpenAI's schema."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from fastapi import FastAPI, Request
from fastapi.openapi.utils import get_openapi
from fastapi.responses import HTMLResponse, JSONResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import ValidationError
from pydantic.json_schema import models_json_schema
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Receive, Scope, Send

from mindspeed_vita import __version__
from mindspeed_vita.inference.request_loop import RequestLoop
from mindspeed_vita.serving.access import check_host
from mindspeed_vita.serving.clients import read_json
from mindspeed_vita.serving.completions import Asked, Completions
from mindspeed_vita.serving.engine import Engine
from mindspeed_vita.serving.errors import ApiError, from_validation
from mindspeed_vita.serving.metrics import Metrics
from mindspeed_vita.serving.request_log import NOTES, RequestLog, print_line
from mindspeed_vita.serving.schema import ChatRequest, CompletionRequest
from mindspeed_vita.serving.settings import ServeSettings

_PAGE = Path(__file__).with_name("page") / "chat.html"
_PAGE_POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; connect-src 'self'; img-src blob: data:; media-src blob:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
Model = TypeVar("Model", ChatRequest, CompletionRequest)


def create_app(
    engine: Engine, loop: RequestLoop, settings: ServeSettings, folder: Path, write: Callable[[dict[str, Any]], None] = print_line
) -> FastAPI:
    """The application.

    Args:
        engine: runs the loop.
        loop: of the loaded model.
        settings: what is allowed.
        folder: for the media of requests.
        write: takes the line of each request.
    """
    metrics = Metrics(engine, loop)
    tokenizer = loop.session.loaded.tokenizer
    completions = Completions(engine, settings, metrics, lambda token: tokenizer.decode([token]), folder)
    app = FastAPI(title="mindspeed_vita", version=__version__, docs_url=None, redoc_url=None)
    app.add_middleware(_OwnHost, settings=settings)
    app.add_middleware(RequestLog, metrics=metrics, write=write)
    _add_errors(app)
    _add_state(app, engine, metrics)
    _add_api(app, engine, completions, settings)
    app.openapi = lambda: _openapi(app)  # type: ignore[method-assign]
    return app


def _add_api(app: FastAPI, engine: Engine, completions: Completions, settings: ServeSettings) -> None:
    card = {"id": settings.model, "object": "model", "created": int(time.time()), "owned_by": "mindspeed_vita"}

    async def answer(request: Request, kind: type[Asked]) -> Response:
        settings.keys.admit(request.headers.get("authorization"))
        place = engine.arrive()  # before the body: what is not taken shall cost nothing
        try:
            left = settings.body_seconds if place.left is None else min(settings.body_seconds, place.left)
            most = settings.limits.characters
            body = await read_json(request, max_bytes=settings.max_body, max_characters=most, seconds=left)
            asked = _validated(body, kind)
            return await completions.respond(request, asked, request.scope[NOTES], place)
        except BaseException:
            place.close()
            raise

    @app.post("/v1/chat/completions", openapi_extra=_body(ChatRequest), responses=_ERRORS)
    async def chat_completions(request: Request) -> Response:
        """Answers a conversation with pictures and videos."""
        return await answer(request, ChatRequest)

    @app.post("/v1/completions", openapi_extra=_body(CompletionRequest), responses=_ERRORS)
    async def text_completions(request: Request) -> Response:
        """Goes on with a text."""
        return await answer(request, CompletionRequest)

    @app.get("/v1/models", responses=_ERRORS)
    async def models(request: Request) -> dict[str, Any]:
        """The one model."""
        settings.keys.admit(request.headers.get("authorization"))
        return {"object": "list", "data": [card]}

    @app.get("/v1/models/{name:path}", responses=_ERRORS)
    async def model(request: Request, name: str) -> dict[str, Any]:
        """The one model, by its name."""
        settings.keys.admit(request.headers.get("authorization"))
        if name != settings.model:
            raise ApiError(404, f"the model {name!r} does not exist; this server has {settings.model!r}", code="model_not_found")
        return card


def _validated(body: Any, kind: type[Asked]) -> Asked:
    if not isinstance(body, dict):
        raise ApiError(400, f"the body is a {type(body).__name__}; expected an object")
    try:
        return kind.model_validate(body)
    except ValidationError as error:
        raise from_validation(error) from error


def _add_state(app: FastAPI, engine: Engine, metrics: Metrics) -> None:
    page = _PAGE.read_text(encoding="utf-8")

    @app.get("/", response_class=HTMLResponse, include_in_schema=False)
    async def chat_page() -> HTMLResponse:
        return HTMLResponse(page, headers={"Content-Security-Policy": _PAGE_POLICY, "X-Content-Type-Options": "nosniff"})

    @app.get("/health", responses={503: {"description": "The model stopped working."}})
    async def health() -> JSONResponse:
        """Whether the process works. It also does while it drains."""
        broken = engine.failure is not None
        return JSONResponse({"status": "failed" if broken else "ok"}, 503 if broken else 200)

    @app.get("/ready", responses={503: {"description": "No new requests are taken."}})
    async def ready() -> JSONResponse:
        """Whether new requests are taken."""
        return JSONResponse({"status": "ok" if engine.takes_requests else "not ready"}, 200 if engine.takes_requests else 503)

    @app.get("/metrics", response_class=Response)
    async def prometheus() -> Response:
        """Counters in Prometheus' format."""
        return Response(metrics.text(), headers={"Content-Type": CONTENT_TYPE_LATEST})


def _add_errors(app: FastAPI) -> None:
    def http_error(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)
        message = f"{request.method} {request.url.path}: {error.detail}"
        response = _api_error(request, ApiError(error.status_code if error.status_code in (404, 405) else 400, message))
        response.headers.update(error.headers or {})
        return response

    def fault(request: Request, error: Exception) -> JSONResponse:
        return _api_error(request, ApiError(500, "the server failed at this request; its log says why"))

    app.add_exception_handler(ApiError, _api_error)
    app.add_exception_handler(HTTPException, http_error)
    app.add_exception_handler(Exception, fault)


def _api_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, ApiError)
    notes = request.scope.get(NOTES, {})
    notes["code"] = error.code or ("invalid_request" if error.status < 500 else "server_error")
    headers = {} if error.retry_after is None else {"Retry-After": str(error.retry_after)}
    return _Ascii(error.body(), error.status, headers=headers)


class _OwnHost:
    """ASGI middleware: access.check_host for every path."""

    def __init__(self, app: ASGIApp, settings: ServeSettings) -> None:
        self._app, self._settings = app, settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            request = Request(scope)
            try:
                check_host(request.headers.get("host", ""), self._settings.keys, self._settings.host)
            except ApiError as error:
                await _api_error(request, error)(scope, receive, send)
                return
        await self._app(scope, receive, send)


class _Ascii(JSONResponse):
    """A message may quote half a character of the request, which UTF-8 does not have."""

    def render(self, content: Any) -> bytes:
        return json.dumps(content, separators=(",", ":")).encode()


def _body(kind: type[Asked]) -> dict[str, Any]:
    """The handlers read the body themselves, so FastAPI does not know it."""
    schema = {"$ref": f"#/components/schemas/{kind.__name__}"}
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


_ERROR_TEXTS = {
    400: "Invalid.",
    401: "No valid key.",
    403: "Sent to another host.",
    404: "No such model.",
    408: "Too slow.",
    413: "Too large.",
    429: "Too many requests.",
    503: "Not available.",
}
_ERRORS: dict[int | str, dict[str, Any]] = {status: {"description": text} for status, text in _ERROR_TEXTS.items()}


def _openapi(app: FastAPI) -> dict[str, Any]:
    if app.openapi_schema is None:
        schema = get_openapi(title=app.title, version=app.version, routes=app.routes)
        template = "#/components/schemas/{model}"
        kinds = models_json_schema([(ChatRequest, "validation"), (CompletionRequest, "validation")], ref_template=template)[1]
        schema.setdefault("components", {}).setdefault("schemas", {}).update(kinds["$defs"])
        app.openapi_schema = schema
    return app.openapi_schema
