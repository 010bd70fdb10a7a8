"""From a validated request to its response: media to paths, choices to the engine, and their text whole or as a stream."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
import threading
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import aclosing
from pathlib import Path
from typing import Any, Optional, Union

from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response

from mindspeed_vita.inference.request import Answer, Request
from mindspeed_vita.inference.sampling import SampledToken, SamplingParams
from mindspeed_vita.serving.clients import EventStream, unless_gone
from mindspeed_vita.serving.conversation import conversation, has_media, plain_text
from mindspeed_vita.serving.engine import Engine, Place, Progress
from mindspeed_vita.serving.errors import ApiError
from mindspeed_vita.serving.media_rules import Kind, MediaRefused, MediaRules
from mindspeed_vita.serving.metrics import Metrics
from mindspeed_vita.serving.responses import DONE, Choice, Reply, Usage, event
from mindspeed_vita.serving.schema import ChatRequest, CompletionRequest
from mindspeed_vita.serving.settings import ServeSettings

Asked = Union[ChatRequest, CompletionRequest]
_FAULTS = {"media": (400, None), "time": (408, "time_limit"), "model": (500, "model_failed")}
_MEDIA_THREADS = 32
"""They wait for hosts and disks."""
_PROMPT_THREADS = 4
"""They compute: each reads one prompt at a time, so that a few long ones do not keep the short ones waiting."""


class Completions:
    """Answers requests.

    Args:
        engine: what computes.
        settings: what is allowed.
        metrics: what is counted.
        text_of: the text of one token.
        folder: for the media of requests; each has a folder of its own below it.
    """

    def __init__(self, engine: Engine, settings: ServeSettings, metrics: Metrics, text_of: Callable[[int], str], folder: Path) -> None:
        self._engine, self._settings, self._metrics, self._text_of, self._folder = engine, settings, metrics, text_of, folder
        self._media_threads = ThreadPoolExecutor(_MEDIA_THREADS, thread_name_prefix="vita-media")
        self._prompt_threads = ThreadPoolExecutor(_PROMPT_THREADS, thread_name_prefix="vita-prompt")

    async def respond(self, http: HttpRequest, asked: Asked, notes: dict[str, Any], place: Place) -> Response:
        """The response to a request.

        Args:
            http: the request whose body was read.
            asked: its body.
            notes: takes what the log shall say.
            place: the request's, closed when its results end. The caller closes it if this raises.

        Raises:
            ApiError: it cannot be answered.
            ClientGone: nobody waits for it any more.
        """
        params = self._params(asked)
        place.resize(asked.n)
        chat = isinstance(asked, ChatRequest)
        reply = Reply(model=self._settings.model, chat=chat, text_of=self._text_of, logprobs=asked.num_logprobs is not None)
        notes.update(id=reply.key, stream=asked.stream, n=asked.n)
        tally = _Tally(self._metrics, notes, asked.n)
        results = self._results(asked, params, tally, place)
        if not asked.stream:
            return JSONResponse(await unless_gone(http.receive, _whole(results, reply, tally)))
        # what is wrong with the request shows before the first text: then it still gets a status of its own
        first = await unless_gone(http.receive, anext(results))
        with_usage = asked.stream_options is not None and asked.stream_options.include_usage
        events = _events(first, results, reply, tally, with_usage)
        return EventStream(events, seconds=self._settings.send_seconds, close=results.aclose)

    def _params(self, asked: Asked) -> list[SamplingParams]:
        settings = self._settings
        if asked.model not in (None, settings.model):
            raise ApiError(404, f"the model {asked.model!r} does not exist; this server has {settings.model!r}", code="model_not_found")
        if asked.n > settings.limits.choices:
            raise ApiError(400, f"n={asked.n}; the server allows {settings.limits.choices} choices", param="n")
        if settings.max_answer is not None and (asked.answer_tokens or 0) > settings.max_answer:
            raise ApiError(400, f"the server allows answers of {settings.max_answer} tokens", param="max_tokens")
        try:
            return [asked.sampling(choice) for choice in range(asked.n)]
        except ValueError as error:  # such as a seed that has no successor for the second choice
            raise ApiError(400, str(error)) from error

    async def _results(
        self, asked: Asked, params: Sequence[SamplingParams], tally: _Tally, place: Place
    ) -> AsyncGenerator[tuple[int, Progress], None]:
        """What each step brings each choice."""
        folder = Path(tempfile.mkdtemp(dir=self._folder))
        wanted = threading.Event()
        wanted.set()
        # a text alone does not wait behind the media of others
        threads = self._media_threads if isinstance(asked, ChatRequest) and has_media(asked.messages) else self._prompt_threads
        jobs: list[Future[Any]] = [threads.submit(self._request, asked, folder, wanted)]
        try:
            request: Request = await _in_time(jobs[0], place)
            tally.takes(request)
            jobs.append(self._prompt_threads.submit(self._engine.prepare, request))
            try:
                prepared = await _in_time(jobs[1], place)
            except ApiError as error:
                raise _without_paths(error, request) from error
            async with aclosing(_merged(self._engine, prepared, params, place)) as updates:
                waits = True
                while True:
                    try:
                        update = await (asyncio.wait_for(anext(updates), self._settings.max_wait) if waits else anext(updates))
                    except StopAsyncIteration:
                        return
                    except asyncio.TimeoutError as error:
                        message = f"no text came within {self._settings.max_wait:g} seconds; the server is busy, try again later"
                        raise ApiError(503, message, code="waited_too_long", retry_after=10) from error
                    except ApiError as error:
                        raise _without_paths(error, request) from error
                    waits = False
                    answer = update[1].answer
                    if answer is not None and answer.reason == "error":
                        status, code = _FAULTS[answer.fault]
                        raise _without_paths(ApiError(status, answer.message, code=code), request)
                    tally.takes_progress(*update)
                    yield update
        finally:
            wanted.clear()
            # a thread that still works for a client that is gone uses the folder until it ends; the last one ends last
            jobs[-1].add_done_callback(lambda _: shutil.rmtree(folder, ignore_errors=True))
            place.close()
            tally.end()

    def _request(self, asked: Asked, folder: Path, wanted: threading.Event) -> Request:
        limits = self._settings.limits
        if isinstance(asked, ChatRequest):
            return conversation(asked.messages, _WhileWanted(self._settings.rules, wanted), limits, folder)
        if len(asked.prompt) > limits.characters:
            raise ApiError(400, f"the prompt has {len(asked.prompt):,} characters, the server allows {limits.characters:,}", param="prompt")
        return Request(messages=(), text=plain_text(asked.prompt, "prompt"))


class _WhileWanted:
    """Media rules that stop before the next medium once nobody waits for the request."""

    def __init__(self, rules: MediaRules, wanted: threading.Event) -> None:
        self._rules, self._wanted = rules, wanted

    def declared_size(self, url: str, kind: Kind, number: int) -> Optional[int]:
        return self._rules.declared_size(url, kind, number)

    def path_of(self, url: str, kind: Kind, folder: Path, number: int, most: Optional[int] = None) -> str:
        if not self._wanted.is_set():
            raise MediaRefused(f"{kind} {number}: nobody waits for it any more")
        return self._rules.path_of(url, kind, folder, number, most)


class _Tally:
    """What one request cost, for its usage, its line in the log and the counters."""

    def __init__(self, metrics: Metrics, notes: dict[str, Any], num_choices: int) -> None:
        self._metrics, self._notes = metrics, notes
        self._start, self._first = time.monotonic(), 0.0
        self.answers: list[Answer | None] = [None] * num_choices

    def takes(self, request: Request) -> None:
        self._notes.update(images=len(request.images), videos=len(request.videos))

    def takes_progress(self, choice: int, progress: Progress) -> None:
        if not self._first:
            self._first = time.monotonic()
            self._metrics.first_token.observe(self._first - self._start)
            self._notes["first_token_seconds"] = round(self._first - self._start, 3)
        if progress.answer is not None:
            self.answers[choice] = progress.answer

    @property
    def usage(self) -> Usage:
        """Of the choices that have ended."""
        ended = [answer for answer in self.answers if answer is not None]
        if not ended:
            return Usage(prompt_tokens=0, completion_tokens=0)
        return Usage(
            prompt_tokens=ended[0].prompt_tokens,
            completion_tokens=sum(len(answer.token_ids) for answer in ended),
            cached_tokens=min(answer.cached_tokens for answer in ended),
            frames=ended[0].frames,
        )

    def end(self) -> None:
        usage, took = self.usage, time.monotonic() - self._start
        if not usage.prompt_tokens:
            return
        self._notes.update(
            prompt_tokens=usage.prompt_tokens,
            cached_tokens=usage.cached_tokens,
            answer_tokens=usage.completion_tokens,
            finish=[answer.reason for answer in self.answers if answer is not None],
        )
        self._metrics.prompt_tokens.inc(usage.prompt_tokens)
        self._metrics.cached_tokens.inc(usage.cached_tokens)
        self._metrics.answer_tokens.inc(usage.completion_tokens)
        self._metrics.rate.observe(usage.completion_tokens / max(took, 1e-6))


async def _whole(results: AsyncGenerator[tuple[int, Progress], None], reply: Reply, tally: _Tally) -> dict[str, Any]:
    async with aclosing(results) as updates:
        async for _ in updates:
            pass
    answers = [answer for answer in tally.answers if answer is not None]
    return reply.whole([Choice(text=one.text, reason=one.reason, tokens=one.tokens) for one in answers], tally.usage)


async def _events(
    first: tuple[int, Progress], results: AsyncGenerator[tuple[int, Progress], None], reply: Reply, tally: _Tally, with_usage: bool
) -> AsyncGenerator[bytes, None]:
    async with aclosing(results) as updates:
        try:
            for choice in range(len(tally.answers) if reply.chat else 0):
                yield event(reply.first(choice))
            for piece in _chunks(*first, reply):
                yield event(piece)
            async for update in updates:
                for piece in _chunks(*update, reply):
                    yield event(piece)
        except ApiError as error:  # the status is sent already
            yield event(error.body())
            return
    if with_usage:
        yield event(reply.usage(tally.usage))
    yield DONE


def _chunks(choice: int, progress: Progress, reply: Reply) -> list[dict[str, Any]]:
    tokens: Sequence[SampledToken] = progress.tokens
    found = [reply.piece(choice, progress.text, tokens)] if progress.text or tokens else []
    return [*found, reply.last(choice, progress.answer.reason)] if progress.answer is not None else found


async def _in_time(job: Future[Any], place: Place) -> Any:
    """What a thread's job gives. ApiError: it takes longer than the request may."""
    try:
        return await asyncio.wait_for(asyncio.wrap_future(job), place.left)
    except asyncio.TimeoutError as error:
        raise place.too_slow() from error


async def _merged(
    engine: Engine, prepared: Any, params: Sequence[SamplingParams], place: Place
) -> AsyncGenerator[tuple[int, Progress], None]:
    """The progress of all choices of a request, as it comes. Leaving early cancels them all, and so does the end of its time."""
    came: asyncio.Queue[tuple[int, Progress | BaseException]] = asyncio.Queue()

    async def pump(choice: int) -> None:
        try:
            async with aclosing(engine.submit(prepared, params[choice], place)) as updates:
                async for update in updates:
                    came.put_nowait((choice, update))
        except Exception as error:  # noqa: BLE001  raised again by the one who waits
            came.put_nowait((choice, error))

    left_seconds, alarm = place.left, None
    if left_seconds is not None:
        alarm = asyncio.get_running_loop().call_later(left_seconds, came.put_nowait, (0, place.too_slow()))
    tasks = [asyncio.ensure_future(pump(choice)) for choice in range(len(params))]
    try:
        left = len(tasks)
        while left:
            choice, what = await came.get()
            if isinstance(what, BaseException):
                raise what
            left -= what.answer is not None
            yield choice, what
    finally:
        if alarm is not None:
            alarm.cancel()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _without_paths(error: ApiError, request: Request) -> ApiError:
    """A message names files of the server; to the client they are its first image, its second video."""
    message = error.message
    for kind, paths in (("image", request.images), ("video", request.videos)):
        for number, path in reversed(list(enumerate(paths, start=1))):  # the path of the first one begins that of the tenth
            message = message.replace(f"{kind} {path}", f"{kind} {number}").replace(path, f"{kind} {number}")
    return ApiError(error.status, message, param=error.param, code=error.code, retry_after=error.retry_after)
