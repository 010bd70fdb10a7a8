"""The engine's thread with a loop that only counts: streams, refusals, cancellation, shutting down, and a loop that fails."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Coroutine
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any, Optional

import pytest

from mindspeed_vita.data.sample import Message
from mindspeed_vita.inference.request import Request
from mindspeed_vita.inference.sampling import SamplingParams
from mindspeed_vita.serving.engine import Engine, PreparationFailed
from mindspeed_vita.serving.errors import ApiError


@dataclass(frozen=True)
class Piece:
    number: int
    text: str
    answer: Optional[str] = None
    tokens: tuple[()] = ()


@dataclass
class CountingLoop:
    """Answers a request with max_tokens numbers, one a step. Some texts are refused, fail alone or break the loop."""

    seconds: float = 0.0
    active: dict[int, list[int]] = field(default_factory=dict)
    added: list[str] = field(default_factory=list)
    cancelled: list[int] = field(default_factory=list)
    threads: set[int] = field(default_factory=set)
    prepared: set[int] = field(default_factory=set)
    time_limits: set[Optional[float]] = field(default_factory=set)
    beats: int = 0

    @property
    def idle(self) -> bool:
        return not self.active

    def prepare(self, request: Request) -> Request:
        self.prepared.add(threading.get_ident())
        text = request.messages[0].content
        if text == "bad":
            raise ValueError("the prompt is too long")
        if text == "unprepared":
            raise PreparationFailed("a request could not be prepared") from OSError("Too many open files")
        return request

    def take(self, request: Request, params: SamplingParams, *, time_limit: Optional[float] = None) -> int:
        self.threads.add(threading.get_ident())
        self.time_limits.add(time_limit)
        text = request.messages[0].content
        if text == "bad film":
            raise ValueError("the film is broken")
        if text == "film without a process":
            raise PreparationFailed("a request could not be prepared") from OSError("Too many open files")
        self.added.append(text)
        self.active[len(self.added)] = [0, -1 if text == "broken" else params.max_tokens or 1]
        return len(self.added)

    def beat(self) -> None:
        self.beats += 1

    def cancel(self, number: int) -> None:
        self.threads.add(threading.get_ident())
        self.cancelled.append(number)

    def step(self) -> list[Piece]:
        self.threads.add(threading.get_ident())
        time.sleep(self.seconds)
        pieces = []
        for number, state in list(self.active.items()):
            if number in self.cancelled:
                del self.active[number]
                pieces.append(Piece(number, "", "cancelled"))
                continue
            state[0] += 1
            if state[1] < 0:
                raise RuntimeError("rank 1 died")
            ended = state[0] == state[1]
            pieces.append(Piece(number, f"{state[0]} ", "whole" if ended else None))
            if ended:
                del self.active[number]
        return pieces


def asked(text: str = "count") -> Request:
    return Request(messages=(Message("user", text),))


def params(tokens: int = 5) -> SamplingParams:
    return SamplingParams(max_tokens=tokens)


async def whole(engine: Engine, text: str = "count", tokens: int = 5) -> str:
    with closing(engine.arrive()) as place:
        prepared = await asyncio.to_thread(engine.prepare, asked(text))
        return "".join([piece.text async for piece in engine.submit(prepared, params(tokens), place)])


def within(seconds: float, work: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
    return asyncio.run(asyncio.wait_for(work(), seconds))


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0.005)


def test_requests_are_computed_together_in_a_thread_of_their_own():
    loop = CountingLoop(seconds=0.002)
    engine = Engine(loop, time_limit=30.0)

    async def work() -> list[str]:
        return await asyncio.gather(*(whole(engine, tokens=tokens) for tokens in range(1, 9)))

    assert within(60, work) == ["".join(f"{one} " for one in range(1, tokens + 1)) for tokens in range(1, 9)]
    assert len(loop.threads) == 1 and not loop.threads & loop.prepared and threading.get_ident() not in loop.threads
    assert all(0 < one <= 30.0 for one in loop.time_limits)
    assert engine.num_requests == 0 and engine.drain(10) and not engine.alive


@pytest.mark.parametrize(("text", "message"), [("bad", "the prompt is too long"), ("bad film", "the film is broken")])
def test_a_request_that_cannot_be_answered_is_a_400_and_no_one_elses(text: str, message: str):
    engine = Engine(CountingLoop())

    async def work() -> list[Any]:
        return await asyncio.gather(whole(engine, text), whole(engine), return_exceptions=True)

    refused, answered = within(60, work)
    assert isinstance(refused, ApiError) and (refused.status, refused.message) == (400, message)
    assert answered == "1 2 3 4 5 " and engine.drain(10)


@pytest.mark.parametrize("text", ["unprepared", "film without a process"])
def test_a_request_that_fails_alone_is_a_500_and_the_log_says_why(capfd, text: str):
    engine = Engine(CountingLoop())

    async def work() -> list[Any]:
        return await asyncio.gather(whole(engine, text), whole(engine), return_exceptions=True)

    failed, answered = within(60, work)
    assert isinstance(failed, ApiError) and (failed.status, failed.code) == (500, "preparation_failed")
    assert "Too many open files" in capfd.readouterr().err and "open files" not in failed.message
    assert answered == "1 2 3 4 5 " and engine.drain(10)


def test_more_than_may_wait_are_turned_away():
    engine = Engine(CountingLoop(seconds=0.01), most=2)

    async def work() -> list[Any]:
        return await asyncio.gather(*(whole(engine) for _ in range(3)), return_exceptions=True)

    found = within(60, work)
    assert [one for one in found if isinstance(one, str)] == ["1 2 3 4 5 "] * 2
    (refused,) = [one for one in found if isinstance(one, ApiError)]
    assert refused.status == 429 and refused.retry_after == 1
    assert within(60, lambda: whole(engine)) == "1 2 3 4 5 ", "there is room again"
    assert engine.drain(10)


def test_a_request_counts_from_its_arrival_and_its_time_runs():
    engine = Engine(CountingLoop(), most=3, time_limit=0.01)
    place = engine.arrive()
    until_over = within(60, lambda: until(lambda: place.left == 0.0))
    assert until_over is None and (place.too_slow().status, place.too_slow().code) == (408, "time_limit")
    place.resize(3)
    with pytest.raises(ApiError) as caught:
        engine.arrive()
    assert (caught.value.status, caught.value.code) == (429, "queue_full") and engine.num_requests == 3
    place.close()
    place.close()
    other = engine.arrive()
    with pytest.raises(ApiError, match="1 of 3 places are taken"):
        other.resize(4)
    assert engine.num_requests == 1
    other.close()
    assert engine.num_requests == 0 and engine.drain(10)
    with pytest.raises(ApiError, match="shutting down"):
        engine.arrive()


def test_draining_waits_for_a_request_that_arrived_and_was_not_submitted_yet():
    engine = Engine(CountingLoop(seconds=0.01))

    async def work() -> tuple[str, bool]:
        with closing(engine.arrive()) as place:
            draining = asyncio.ensure_future(asyncio.to_thread(engine.drain, 30))
            await until(lambda: engine._draining)
            text = "".join([piece.text async for piece in engine.submit(asked(), params(3), place)])
        return text, await draining

    assert within(60, work) == ("1 2 3 ", True)


def test_a_client_that_goes_away_cancels_its_request():
    loop = CountingLoop(seconds=0.002)
    engine = Engine(loop)

    async def work() -> None:
        place = engine.arrive()
        stream = engine.submit(asked(), params(10_000), place)
        async for _ in stream:
            break
        await stream.aclose()
        place.close()
        task = asyncio.ensure_future(whole(engine, tokens=10_000))
        await until(lambda: len(loop.added) == 2)
        task.cancel()
        await until(lambda: loop.idle)

    within(60, work)
    assert loop.cancelled == [1, 2] and engine.num_requests == 0 and engine.drain(10)


def test_one_that_goes_away_before_its_turn_is_never_computed():
    loop = CountingLoop()
    engine = Engine(loop)
    entered, release = threading.Event(), threading.Event()

    def busy() -> None:
        entered.set()
        release.wait(30)

    engine._orders.put(busy)
    assert entered.wait(30)

    async def work() -> None:
        task = asyncio.ensure_future(whole(engine))
        await until(lambda: engine.num_requests == 1)
        task.cancel()
        await until(lambda: engine.num_requests == 0)
        release.set()
        await whole(engine, "next")

    within(60, work)
    assert loop.added == ["next"] and engine.drain(10)


def test_an_idle_engine_looks_after_the_other_ranks(monkeypatch):
    monkeypatch.setattr("mindspeed_vita.serving.engine._BEAT", 0.01)
    loop = CountingLoop()
    engine = Engine(loop)
    within(60, lambda: until(lambda: loop.beats > 2))
    assert within(60, lambda: whole(engine)) == "1 2 3 4 5 " and engine.drain(10)


def test_draining_lets_the_running_finish_and_takes_no_new_ones():
    engine = Engine(CountingLoop(seconds=0.01))

    async def work() -> tuple[str, ApiError, bool]:
        running = asyncio.ensure_future(whole(engine, tokens=30))
        await until(lambda: engine.num_requests == 1)
        draining = asyncio.ensure_future(asyncio.to_thread(engine.drain, 30))
        await until(lambda: engine._draining)
        with pytest.raises(ApiError) as caught:
            await whole(engine)
        return await running, caught.value, await draining

    text, refused, finished = within(60, work)
    assert text.endswith("30 ") and finished and not engine.alive
    assert refused.status == 503 and refused.code == "shutting_down"


def test_what_does_not_finish_in_time_gets_a_503_and_is_cancelled():
    loop = CountingLoop(seconds=0.01)
    engine = Engine(loop)

    async def work() -> tuple[Any, bool]:
        running = asyncio.ensure_future(whole(engine, tokens=10_000))
        await until(lambda: loop.active)
        finished = await asyncio.to_thread(engine.drain, 0.05)
        return (await asyncio.gather(running, return_exceptions=True))[0], finished

    refused, finished = within(60, work)
    assert not finished and isinstance(refused, ApiError) and refused.status == 503
    assert loop.cancelled == [1] and loop.idle


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_loop_that_fails_ends_everything_that_waits():
    engine = Engine(CountingLoop(seconds=0.01))

    async def work() -> list[Any]:
        first = asyncio.ensure_future(whole(engine, tokens=10_000))
        await until(lambda: engine.num_requests == 1)
        return await asyncio.gather(first, whole(engine, "broken"), return_exceptions=True)

    for error in within(60, work):
        assert isinstance(error, ApiError) and (error.status, error.code) == (503, "engine_failed")
    assert not engine.alive and str(engine.failure) == "rank 1 died"
    with pytest.raises(ApiError, match="the model stopped working"):
        within(60, lambda: whole(engine))
    engine.drain(1)
