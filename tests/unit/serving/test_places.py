"""Places in the queue: taken before a body is read, held while media are fetched, given back on every path."""

from __future__ import annotations

import json
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO, Optional

import pytest

from mindspeed_vita.inference.session import InferenceSession
from mindspeed_vita.serving.fetching import FetchError
from mindspeed_vita.serving.media_rules import MediaRules
from tests.unit.serving.conftest import Running, raw, serving, shown, until
from tests.unit.serving.test_app import HI, post

HEAD = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n"
FETCHED: dict[str, Any] = {**HI, "messages": shown("What?", "http://host/a.png", "http://host/b.png")}


class SlowHost:
    """A fetcher that gets nothing until it is let go."""

    def __init__(self) -> None:
        self.asked, self.go = threading.Event(), threading.Event()
        self.fetched: list[str] = []

    def fetch(self, url: str, target: BinaryIO, most: Optional[int] = None) -> None:
        self.fetched.append(url)
        target.write(b"pixels")
        self.asked.set()
        self.go.wait(60)
        if url.endswith("a.png"):
            return
        raise FetchError("host answered with status 404")


def refused_at_once(running: Running) -> bytes:
    """The answer to a request of which only the head was sent."""
    with raw(running.url, HEAD) as connection:
        return connection.recv(4096)


def test_a_request_that_fetches_holds_its_place_and_the_next_one_is_refused_before_its_body(
    session: InferenceSession, tmp_path: Path
) -> None:
    host = SlowHost()
    with serving(session, tmp_path, most=1, rules=MediaRules(fetcher=host)) as running, ThreadPoolExecutor(2) as pool:  # type: ignore[arg-type]
        first = pool.submit(post, running.url, FETCHED)
        assert host.asked.wait(60)
        assert refused_at_once(running).startswith(b"HTTP/1.1 429")
        drained = pool.submit(running.engine.drain, 60)
        until(lambda: not running.engine.takes_requests)
        assert refused_at_once(running).startswith(b"HTTP/1.1 503")
        host.go.set()
        assert first.result()[0] == 400 and drained.result() and running.engine.num_requests == 0


def test_the_time_of_a_request_covers_fetching(session: InferenceSession, tmp_path: Path) -> None:
    host = SlowHost()
    with serving(session, tmp_path, time_limit=0.3, rules=MediaRules(fetcher=host)) as running:  # type: ignore[arg-type]
        status, answer, _ = post(running.url, FETCHED)
        host.go.set()
        until(lambda: not os.listdir(tmp_path))
        assert host.fetched == ["http://host/a.png"], "nobody waits for the second one"
        assert (status, answer["error"]["code"]) == (408, "time_limit") and running.engine.num_requests == 0


def test_the_time_of_a_request_covers_its_body(session: InferenceSession, tmp_path: Path) -> None:
    with serving(session, tmp_path, time_limit=0.3) as running:
        assert refused_at_once(running).startswith(b"HTTP/1.1 408") and running.engine.num_requests == 0


@pytest.mark.parametrize("body", [b"{", {**HI, "model": "other"}, {**HI, "n": 3}, {**HI, "max_tokens": 10**6}])
def test_a_refusal_gives_the_place_back(session: InferenceSession, tmp_path: Path, body: Any) -> None:
    with serving(session, tmp_path, most=2) as running:
        assert 400 <= post(running.url, body)[0] < 500
        assert running.engine.num_requests == 0 and post(running.url, {**HI, "n": 2})[0] == 200


@pytest.mark.parametrize("sent", [1, None], ids=["in its body", "in its stream"])
def test_a_client_that_goes_away_gives_its_place_back(session: InferenceSession, tmp_path: Path, sent: Optional[int]) -> None:
    body = json.dumps({**HI, "max_tokens": 3900, "stream": True}).encode()
    with serving(session, tmp_path, most=1) as running:
        with raw(running.url, HEAD.replace(b"100", str(len(body)).encode()) + body[:sent]) as connection:
            until(lambda: running.engine.num_requests)
            if sent is None:
                assert connection.recv(15) == b"HTTP/1.1 200 OK"
        until(running.idle)
        assert post(running.url, HI)[0] == 200
