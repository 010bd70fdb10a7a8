"""The bridge between the HTTP side, which never computes, and the loop that does: a thread of its own, and a stream for each request."""

from __future__ import annotations

import asyncio
import queue
import threading
import time
import traceback
from collections.abc import AsyncGenerator, Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Optional, Protocol

from mindspeed_vita.inference.request import Request
from mindspeed_vita.inference.sampling import SampledToken, SamplingParams
from mindspeed_vita.serving.errors import ApiError

_BEAT = 2.0
"""Seconds between two looks at the other ranks while there is nothing to do."""


class PreparationFailed(Exception):
    """Preparing one request failed in this process. The loop keeps nothing of the request and other requests go on; the cause says why."""


class Progress(Protocol):
    """What a step brought one request."""

    @property
    def number(self) -> int:
        """The request."""
        ...

    @property
    def text(self) -> str:
        """The next piece of its text; may be empty."""
        ...

    @property
    def answer(self) -> Optional[Any]:
        """The whole answer, once it has ended."""
        ...

    @property
    def tokens(self) -> Sequence[SampledToken]:
        """The tokens since the progress before, where log-probabilities were asked for."""
        ...


class Loop(Protocol):
    """What computes. Only the engine's thread calls it, except `prepare`."""

    @property
    def idle(self) -> bool:
        """Whether no request waits or runs."""
        ...

    def prepare(self, request: Request) -> Any:
        """What of a request needs no model. Any thread. ValueError: it cannot be answered. PreparationFailed: it alone failed."""
        ...

    def take(self, prepared: Any, params: SamplingParams, *, time_limit: Optional[float] = None) -> int:
        """Takes what `prepare` returned; returns its number. Raises as `prepare`."""
        ...

    def beat(self) -> None:
        """Fails if another rank is gone."""
        ...

    def cancel(self, number: int) -> None:
        """Ends a request."""
        ...

    def step(self) -> Iterable[Progress]:
        """Computes one step."""
        ...


class Place:
    """A request's share of the queue, from its arrival to its end. Its time runs from the arrival, too.

    Args:
        change: takes or gives back so many; may refuse.
        seconds: how long the request may take; None sets no limit.
    """

    def __init__(self, change: Callable[[int], None], seconds: Optional[float]) -> None:
        self._change, self._size, self._seconds = change, 0, seconds
        self._deadline = None if seconds is None else time.monotonic() + seconds
        self.resize(1)

    def resize(self, choices: int) -> None:
        """Counts as so many choices. ApiError: as Engine.arrive; the size stays what it was."""
        self._change(choices - self._size)
        self._size = choices

    def close(self) -> None:
        """Gives everything back. A second time changes nothing."""
        self._change(-self._size)
        self._size = 0

    @property
    def left(self) -> Optional[float]:
        """Seconds that are left, never below 0."""
        return None if self._deadline is None else max(0.0, self._deadline - time.monotonic())

    def too_slow(self) -> ApiError:
        """What a request gets whose time is over."""
        return ApiError(408, f"the request took longer than the {self._seconds:g} seconds that it may take", code="time_limit")


@dataclass(eq=False)
class _Job:
    """One request on its way: the event loop that waits for it, and the queue that it waits at."""

    events: asyncio.AbstractEventLoop
    arrived: asyncio.Queue[Progress | ApiError]
    number: Optional[int] = None
    gone: bool = False

    def tell(self, what: Progress | ApiError) -> None:
        """From the engine's thread. An event loop that was closed meanwhile has nobody who waits."""
        try:
            self.events.call_soon_threadsafe(self.arrived.put_nowait, what)
        except RuntimeError:
            if not self.events.is_closed():
                raise


class Engine:
    """Runs a loop in a thread.

    Args:
        loop: what computes.
        most: choices of requests that arrived and have not ended; more are refused with 429.
        time_limit: seconds of a request from its arrival to its end; None sets no limit.
    """

    def __init__(self, loop: Loop, *, most: int = 256, time_limit: Optional[float] = None) -> None:
        self._loop, self._most, self._time_limit = loop, most, time_limit
        self._orders: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._jobs: set[_Job] = set()
        self._running: dict[int, _Job] = {}
        self._lock = threading.Lock()
        self._taken = 0
        self._draining = self._stopping = self._ended = False
        self.failure: Optional[BaseException] = None
        """What ended the thread, if it was not asked to end."""
        self._thread = threading.Thread(target=self._work, name="vita-engine", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether requests can be computed."""
        return self._thread.is_alive() and self.failure is None

    @property
    def takes_requests(self) -> bool:
        """Whether new requests are taken: it is alive and does not drain."""
        return self.alive and not self._draining

    @property
    def num_requests(self) -> int:
        """Choices that arrive, wait or run."""
        return self._taken

    def arrive(self) -> Place:
        """A place for one choice of a request whose body was not read yet. Whoever takes it closes it.

        Raises:
            ApiError: 429: too many others are here. 503: the engine stopped, stops or failed.
        """
        with self._lock:
            if self._ended or self._draining or not self.alive:
                raise self._unavailable()
        return Place(self._change, self._time_limit)

    def _change(self, number: int) -> None:
        with self._lock:
            if number > 0 and self._taken + number > self._most:
                raise ApiError(429, f"{self._taken} of {self._most} places are taken; try again later", code="queue_full", retry_after=1)
            self._taken += number

    def prepare(self, request: Request) -> Any:
        """What `submit` takes. It reads the prompt, which takes long for a long one. Call it outside of the event loop's thread.

        Raises:
            ApiError: 400: it cannot be answered. 500: it alone failed.
        """
        try:
            return self._loop.prepare(request)
        except (ValueError, PreparationFailed) as error:
            raise _api_error(error) from error

    async def submit(self, prepared: Any, params: SamplingParams, place: Place) -> AsyncGenerator[Progress, None]:
        """What each step brings a request; the last item has the answer. Leaving the iteration early cancels the request.

        Args:
            prepared: what is asked, as `prepare` returns it.
            params: how tokens are chosen.
            place: of the request; stays open.

        Raises:
            ApiError: 400: it cannot be answered. 500: it alone failed. 503: the engine stopped or failed meanwhile.
        """
        job = _Job(asyncio.get_running_loop(), asyncio.Queue())
        with self._lock:
            if self._ended or not self.alive:
                raise self._unavailable()
            self._jobs.add(job)
            self._orders.put(lambda: self._add(job, prepared, params, place))
        try:
            while True:
                what = await job.arrived.get()
                if isinstance(what, ApiError):
                    raise what
                yield what
                if what.answer is not None:
                    return
        finally:
            self._leave(job)

    def drain(self, seconds: float) -> bool:
        """Takes no new requests, waits for those that arrived, then stops. Blocks.

        Args:
            seconds: how long to wait; requests that are still here after that end with a 503.

        Returns:
            Whether all of them finished.
        """
        with self._lock:
            self._draining = True
        deadline = time.monotonic() + seconds
        while self._taken and self.alive and time.monotonic() < deadline:
            time.sleep(0.02)
        finished = not self._taken
        self._orders.put(self._stop)
        self._thread.join()
        return finished

    # In the engine's thread

    def _work(self) -> None:
        try:
            while not self._stopping:
                if self._loop.idle:
                    self._wait()
                while not self._stopping and not self._orders.empty():
                    self._orders.get()()
                if not self._stopping and not self._loop.idle:
                    for progress in self._loop.step():
                        self._tell(progress)
        except BaseException as error:
            self.failure = error
            raise
        finally:
            with self._lock:
                self._draining = self._ended = True
                left, self._jobs = self._jobs, set()
            for job in left:
                job.tell(self._unavailable())

    def _add(self, job: _Job, prepared: Any, params: SamplingParams, place: Place) -> None:
        if job.gone:
            return
        try:
            job.number = self._loop.take(prepared, params, time_limit=place.left)
        except (ValueError, PreparationFailed) as error:
            job.tell(_api_error(error))
        else:
            self._running[job.number] = job

    def _wait(self) -> None:
        """Until there is something to do."""
        while True:
            try:
                order = self._orders.get(timeout=_BEAT)
            except queue.Empty:
                self._loop.beat()
            else:
                order()
                return

    def _tell(self, progress: Progress) -> None:
        job = self._running[progress.number]
        if progress.answer is not None:
            del self._running[progress.number]
        job.tell(progress)

    def _stop(self) -> None:
        self._stopping = True
        for number in list(self._running):
            self._loop.cancel(number)
        if self._running:
            self._loop.step()  # every rank lets go of them

    def _leave(self, job: _Job) -> None:
        """Nobody waits for the job any more. In the event loop's thread."""
        with self._lock:
            job.gone = True
            self._jobs.discard(job)
            self._orders.put(lambda: self._cancel(job))

    def _cancel(self, job: _Job) -> None:
        if job.number in self._running:
            self._loop.cancel(job.number)

    def _unavailable(self) -> ApiError:
        if self.failure is not None:
            return ApiError(503, "the model stopped working; the server's log says why", code="engine_failed")
        return ApiError(503, "the server is shutting down", code="shutting_down", retry_after=10)


def _api_error(error: ValueError | PreparationFailed) -> ApiError:
    """What a request gets that cannot be taken. The log has the cause of what was not its fault."""
    if isinstance(error, ValueError):
        return ApiError(400, str(error))
    traceback.print_exception(error)
    return ApiError(500, "the server failed to prepare this request; its log says why", code="preparation_failed")
