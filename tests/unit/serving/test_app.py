"""A running server without a client library: states, limits, keys, refusals, the log and the counters."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest
import torch

from mindspeed_vita.inference.session import InferenceSession
from mindspeed_vita.serving.access import ApiKeys
from tests.unit.serving.conftest import Running, picture, raw, serving, shown, until

HI = {"messages": [{"role": "user", "content": "How many?"}], "temperature": 0, "max_tokens": 4}


def get(url: str) -> tuple[int, bytes]:
    try:
        with urlopen(url, timeout=60) as answer:
            return answer.status, answer.read()
    except HTTPError as error:
        return error.code, error.read()


def post(url: str, body: Any, path: str = "/v1/chat/completions", **headers: str) -> tuple[int, Any, dict[str, str]]:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    request = Request(url + path, data, {"Content-Type": "application/json", **headers})
    try:
        with urlopen(request, timeout=60) as answer:
            return answer.status, json.loads(answer.read()), {name.lower(): value for name, value in answer.headers.items()}
    except HTTPError as error:
        return error.code, json.loads(error.read()), {name.lower(): value for name, value in error.headers.items()}


@pytest.fixture(scope="module")
def tight(session: InferenceSession, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A server with keys and small limits."""
    keys = ApiKeys(["first", "second", "third"], per_minute=6)
    settings = {"keys": keys, "max_body": 5000, "body_seconds": 0.3, "max_answer": 3000}
    with serving(session, tmp_path_factory.mktemp("tight"), most=1, **settings) as running:
        yield running


def test_states_and_the_page_need_no_key(tight: Running) -> None:
    assert get(f"{tight.url}/health") == (200, b'{"status":"ok"}') and get(f"{tight.url}/ready") == (200, b'{"status":"ok"}')
    status, page = get(f"{tight.url}/")
    assert status == 200 and b"<!doctype html>" in page.lower()
    assert b"http://" not in page and b"https://" not in page, "it works without a network"


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        (b"{", 400, "the body is no JSON"),
        (b"[" * 200_000, 400, "the body is no JSON"),
        (b"[" + b"[]," * 20_000 + b"1]", 400, "more than the 20,000 values"),
        (b'{"a": {' + b",".join(b'"%d": 1' % number for number in range(20_001)) + b"}}", 400, "more than the 20,000 values"),
        (b"{}," * 5_000_000, 400, "more than the 20,000 values"),
        (b"[]", 400, "the body is a list; expected an object"),
        (b'{"temperature": NaN}', 400, "NaN is no number of JSON"),
        (b"\xff\xfe", 400, "the body is no JSON"),
        ({}, 400, "messages: Field required"),
        ({**HI, "\ud800": 1}, 400, "unicode string"),
        ({**HI, "model": "\ud800"}, 404, "does not exist"),
        ({"messages": [{"role": "user", "content": "\ud800"}]}, 400, "half a character"),
        ({**HI, "seed": 1 << 70}, 400, "seed="),
        ({**HI, "max_tokens": 10**30}, 400, "do not fit"),
    ],
)
def test_a_body_that_is_wrong_is_a_400(server: Running, body: Any, status: int, message: str) -> None:
    found, answer, _ = post(server.url, body)
    assert found == status and message in answer["error"]["message"] and set(answer["error"]) == {"message", "type", "param", "code"}


def test_without_keys_a_request_to_another_name_is_refused(server: Running, tight: Running) -> None:
    """The name of a page of another site may lead here."""
    for path in ("/v1/chat/completions", "/v1/nothing"):
        status, answer, _ = post(server.url, HI, path, Host="evil.example:8000")
        assert status == 403 and answer["error"]["type"] == "permission_error" and answer["error"]["code"] == "host_not_allowed"
    assert post(server.url, HI, Host="LOCALHOST:1")[0] == 200
    assert post(tight.url, HI, Host="vita.example")[0] == 401, "keys protect it"


def test_other_paths_methods_and_types_are_refused_in_the_same_schema(server: Running) -> None:
    status, body = get(f"{server.url}/v1/nothing")
    assert status == 404 and json.loads(body)["error"]["type"] == "not_found_error"
    status, body = get(f"{server.url}/v1/chat/completions")
    assert status == 405 and "error" in json.loads(body)
    status, answer, _ = post(server.url, HI, **{"Content-Type": "text/plain"})
    assert status == 400 and "expected application/json" in answer["error"]["message"]


def test_keys_and_requests_per_key(tight: Running) -> None:
    assert post(tight.url, HI)[0] == 401 and post(tight.url, HI, Authorization="Bearer wrong")[0] == 401
    assert get(f"{tight.url}/v1/models")[0] == 401
    found = [post(tight.url, HI, Authorization="Bearer first") for _ in range(7)]
    assert [status for status, _, _ in found] == [200] * 6 + [429]
    assert 50 <= int(found[-1][2]["retry-after"]) <= 61


def test_what_is_too_large_too_slow_or_too_long(tight: Running) -> None:
    key = {"Authorization": "Bearer second"}
    status, answer, _ = post(tight.url, {**HI, "messages": shown("x", picture())}, **key)
    assert status == 413 and "5,000 bytes" in answer["error"]["message"]
    status, answer, _ = post(tight.url, {**HI, "max_tokens": 3001}, **key)
    assert status == 400 and "the server allows answers of 3000 tokens" in answer["error"]["message"]
    head = "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nAuthorization: Bearer second\r\n"
    with raw(tight.url, f"{head}Content-Length: 100\r\n\r\n{{".encode()) as connection:
        assert connection.recv(100).startswith(b"HTTP/1.1 408")
    chunk = f"{4096:x}\r\n{' ' * 4096}\r\n"
    with raw(tight.url, f"{head}Transfer-Encoding: chunked\r\n\r\n{chunk * 2}".encode()) as connection:
        assert connection.recv(100).startswith(b"HTTP/1.1 413"), "no length was declared"


def test_a_full_queue_is_a_429_with_a_time_to_come_back(tight: Running) -> None:
    key = {"Authorization": "Bearer third"}
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(post, tight.url, {**HI, "max_tokens": 300}, **key)
        until(lambda: tight.engine.num_requests)
        status, answer, headers = post(tight.url, HI, **key)
        assert first.result()[0] == 200
    assert status == 429 and headers["retry-after"] == "1" and answer["error"]["code"] == "queue_full"


def test_a_connection_that_breaks_frees_everything(server: Running) -> None:
    body = json.dumps({**HI, "max_tokens": 3900}).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    connection = raw(server.url, head.encode() + body)
    until(lambda: server.loop.counts()[0].used)
    connection.close()
    until(server.idle)
    with raw(server.url, head.encode() + body[:20]):
        pass  # ends in the middle of its body
    assert post(server.url, HI)[0] == 200


def test_a_request_that_waits_too_long_is_a_503(session: InferenceSession, tmp_path: Path) -> None:
    with serving(session, tmp_path, max_wait=0.2) as running:
        entered, release = threading.Event(), threading.Event()
        running.engine._orders.put(lambda: (entered.set(), release.wait(60)))
        assert entered.wait(60)
        status, answer, headers = post(running.url, HI)
        release.set()
        assert (status, answer["error"]["code"]) == (503, "waited_too_long") and "retry-after" in headers
        until(running.idle)


def test_numbers_that_are_not_finite_end_their_request_alone(
    server: Running, session: InferenceSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = session.runner.run

    def broken(step: Any) -> Any:
        result = run(step)
        for row, sequence in enumerate(step.sampled):
            if server.loop._active[sequence].row.params.presence_penalty == 1.5:  # marks the request
                result.logits[row] = torch.nan
        return result

    monkeypatch.setattr(session.runner, "run", broken)
    with ThreadPoolExecutor(2) as pool:
        fine = pool.submit(post, server.url, {**HI, "max_tokens": 40})
        status, answer, _ = post(server.url, {**HI, "presence_penalty": 1.5, "temperature": 1.0})
        assert fine.result()[0] == 200
    assert status == 500 and answer["error"]["code"] == "model_failed" and "not finite" in answer["error"]["message"]
    until(server.idle)


def test_the_log_has_a_line_for_each_request_and_nothing_of_its_content(server: Running) -> None:
    server.lines.clear()
    post(server.url, {**HI, "messages": shown("a secret cat", picture())})
    post(server.url, b"{secret")
    get(f"{server.url}/metrics")
    until(lambda: len(server.lines) == 2)
    answered, refused = server.lines
    assert (answered["status"], answered["path"], answered["images"], answered["answer_tokens"]) == (200, "/v1/chat/completions", 1, 4)
    assert answered["prompt_tokens"] > 20 and answered["finish"] == ["length"] and answered["first_token_seconds"] <= answered["seconds"]
    assert (refused["status"], refused["code"]) == (400, "invalid_request")
    assert "secret" not in json.dumps(server.lines) and "base64" not in json.dumps(server.lines)


def test_the_counters_say_what_happened(server: Running) -> None:
    def counters() -> dict[str, float]:
        lines = get(f"{server.url}/metrics")[1].decode().splitlines()
        return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))}

    post(server.url, HI)
    before = counters()
    post(server.url, HI)
    post(server.url, {**HI, "model": "other"})
    rejected = 'vita_rejected_total{reason="model_not_found"}'
    until(lambda: counters().get(rejected, 0) == before.get(rejected, 0) + 1)
    after = counters()
    assert after["vita_answer_tokens_total"] - before["vita_answer_tokens_total"] == 4
    assert after["vita_prefix_hit_tokens_total"] - before["vita_prefix_hit_tokens_total"] >= 16
    assert after["vita_first_token_seconds_count"] - before["vita_first_token_seconds_count"] == 1
    assert after["vita_requests"] == 0 and after["vita_cache_used_share"] == 0 and "vita_requests_waiting" in after
