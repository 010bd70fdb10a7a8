"""Prompts are read in threads of their own: while one is read, the others' tokens flow and the server answers."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from mindspeed_vita.data.sample import Message
from mindspeed_vita.inference.request import Request
from mindspeed_vita.inference.session import InferenceSession
from mindspeed_vita.serving.conversation import RequestLimits
from tests.unit.serving.conftest import Running, picture, serving, shown, until
from tests.unit.serving.test_app import HI, post

LONG = "a very long prompt"


class SlowBackend:
    """A tokenizers.Tokenizer that keeps one text until it is let go."""

    def __init__(self, backend: Any) -> None:
        self._backend = backend
        self.entered, self.go = threading.Event(), threading.Event()
        self.threads: set[str] = set()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backend, name)

    def encode_batch(self, texts: list[str], **options: Any) -> Any:
        self.threads.add(threading.current_thread().name)
        if LONG in texts:
            self.entered.set()
            assert self.go.wait(60)
        return self._backend.encode_batch(texts, **options)


@pytest.fixture
def slow(session: InferenceSession, monkeypatch: pytest.MonkeyPatch) -> Iterator[SlowBackend]:
    free = session.prompts._free.backend_tokenizer
    backend = SlowBackend(free._backend)
    monkeypatch.setattr(free, "_backend", backend)
    yield backend
    backend.go.set()


def asking(text: str, **fields: Any) -> dict[str, Any]:
    return {**HI, "messages": [{"role": "user", "content": text}], **fields}


def test_while_a_long_prompt_is_read_others_are_answered(server: Running, slow: SlowBackend) -> None:
    alone = post(server.url, HI)[1]["choices"]
    with ThreadPoolExecutor(1) as pool:
        long = pool.submit(post, server.url, asking(LONG))
        assert slow.entered.wait(60)
        assert post(server.url, HI)[1]["choices"] == alone
        assert post(server.url, {**HI, "messages": shown("What?", picture(31))})[0] == 200
        assert not long.done()
        slow.go.set()
        assert long.result()[0] == 200
    assert slow.threads and all(name.startswith("vita-prompt") for name in slow.threads)
    until(server.idle)


def test_all_choices_share_one_reading(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[Request] = []
    encode = server.loop.session.prompts.encode
    monkeypatch.setattr(server.loop.session.prompts, "encode", lambda request: read.append(request) or encode(request))
    assert post(server.url, {**HI, "n": 3, "temperature": 1, "seed": 1})[0] == 200 and len(read) == 1


def test_a_prompt_that_is_not_read_in_time_is_a_408_and_its_place_is_free(
    session: InferenceSession, slow: SlowBackend, tmp_path: Path
) -> None:
    with serving(session, tmp_path, most=1, time_limit=0.3) as running:
        status, answer, _ = post(running.url, asking(LONG))
        assert (status, answer["error"]["code"]) == (408, "time_limit") and running.engine.num_requests == 0
        slow.go.set()


@pytest.mark.parametrize(("path", "field"), [("/v1/chat/completions", "messages"), ("/v1/completions", "prompt")])
def test_characters_are_counted_before_a_tokenizer_sees_them(
    session: InferenceSession, slow: SlowBackend, tmp_path: Path, path: str, field: str
) -> None:
    text = "x" * 51
    body = {**HI, "messages": [{"role": "user", "content": text}]} if field == "messages" else {"prompt": text, "max_tokens": 4}
    with serving(session, tmp_path, limits=RequestLimits(characters=50)) as running:
        status, answer, _ = post(running.url, body, path)
    assert status == 400 and "51 characters, the server allows 50" in answer["error"]["message"] and answer["error"]["param"] == field
    assert not slow.threads


def test_many_threads_read_prompts_as_one_does(session: InferenceSession) -> None:
    """The tokenizer is shared, with the thread that turns tokens into text, too."""
    requests = [Request(messages=(Message("user", f"How many cats are in photo {number}? " * 200),)) for number in range(24)]
    alone = [session.prompts.encode(request).tokens_T.tolist() for request in requests]
    decode = session.loaded.tokenizer.decode
    with ThreadPoolExecutor(8) as pool:
        found = [pool.submit(session.prompts.encode, request) for request in requests * 4]
        texts = {decode(alone[0]) for _ in range(100)}
        assert [one.result().tokens_T.tolist() for one in found] == alone * 4 and len(texts) == 1
