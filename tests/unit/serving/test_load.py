"""32 unlike clients at once, and whatever the OpenAPI description allows."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings

from mindspeed_vita.inference.session import InferenceSession
from tests.unit.serving.conftest import Running, picture, serving, shown, until
from tests.unit.serving.load import Load


@pytest.fixture(scope="module")
def loaded(session: InferenceSession, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with serving(session, tmp_path_factory.mktemp("load"), max_body=1_000_000) as running:
        yield running


def bodies(film: str) -> list[dict]:
    """Requests with and without media, that have an answer."""
    asked = [
        [{"role": "user", "content": "How many?"}],
        [{"role": "user", "content": "A photo of a cat on a table. " * 8}],
        shown("What is it?", picture(1)),
        shown("Compare.", picture(1), picture(2, (90, 30))),
        shown("What happens?", film, kind="video_url"),
    ]
    return [{"messages": messages, "temperature": 0, "max_tokens": 6 + 5 * place} for place, messages in enumerate(asked)]


def test_every_client_gets_what_it_should_whatever_the_others_do(loaded: Running, film: str) -> None:
    load = Load(loaded.url, bodies(film))
    load.run(clients=32, seconds=20)
    assert not load.problems, (load.problems[:5], load.counts)
    assert all(load.counts[kind] for kind in ("valid", "streamed", "slow", "aborted", "oversized", "malformed")), load.counts
    until(loaded.idle)
    until(lambda: not os.listdir(loaded.folder))
    assert not loaded.loop.session.runner.prompts, "nothing is kept of a request"
    assert all(line["status"] in (200, 400, 413, 499) for line in loaded.lines), "no request made the server fail"


def test_nothing_that_the_description_allows_makes_it_fail(loaded: Running) -> None:
    """schemathesis draws requests from the description, right and wrong ones. Every answer is one that the description has."""
    schema = schemathesis.openapi.from_url(f"{loaded.url}/openapi.json")
    counted: dict[str, int] = {}
    lock = threading.Lock()
    for operation in (result.ok() for result in schema.get_all_operations()):
        modes = schemathesis.GenerationMode if operation.body else [schemathesis.GenerationMode.POSITIVE]  # without a body, none is wrong
        strategies = [operation.as_strategy(generation_mode=mode) for mode in modes]
        for strategy in strategies:

            @settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
            @given(case=strategy)
            def ask(case: schemathesis.Case) -> None:
                if isinstance(case.body, dict) and isinstance(case.body.get("max_tokens"), int):
                    case.body["max_tokens"] = min(case.body["max_tokens"], 20)
                response = case.call(timeout=60)
                assert response.status_code < 500, (response.status_code, response.text, case.as_curl_command())
                with lock:
                    counted[f"{response.status_code}"] = counted.get(f"{response.status_code}", 0) + 1

            ask()
    assert counted.get("200", 0) > 10 and counted.get("400", 0) > 10, counted
