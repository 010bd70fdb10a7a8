"""What fails while one request is prepared: whose failure it is."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mindspeed_vita.data.sample import Message
from mindspeed_vita.inference import request_loop
from mindspeed_vita.inference.request import Request
from mindspeed_vita.inference.sampling import SamplingParams
from mindspeed_vita.inference.session import InferenceSession
from mindspeed_vita.serving.engine import PreparationFailed
from mindspeed_vita.serving.served_loop import ServedLoop
from tests.unit.serving.conftest import Running, picture, shown
from tests.unit.serving.test_app import HI, post

FAULTS = [OSError(24, "Too many open files"), RuntimeError("no thread can be started"), MemoryError()]


@pytest.fixture
def image(tmp_path: Path) -> Iterator[str]:
    from PIL import Image

    Image.new("RGB", (30, 20), (9, 8, 7)).save(tmp_path / "a.png")
    yield str(tmp_path / "a.png")


def failing(error: BaseException) -> Any:
    def fail(*_: Any, **__: Any) -> Any:
        raise error

    return fail


def take(loop: ServedLoop, image: str) -> None:
    request = Request(messages=(Message("user", "<image>\nWhat?"),), images=(image,))
    loop.take(loop.prepare(request), SamplingParams(max_tokens=2))  # as the engine takes it


@pytest.mark.parametrize("error", FAULTS, ids=lambda error: type(error).__name__)
def test_a_request_that_cannot_be_prepared_is_a_500_and_the_server_goes_on(
    server: Running, session: InferenceSession, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(session.prompts, "encode", failing(error))
        status, answer, _ = post(server.url, HI)
        assert (status, answer["error"]["code"]) == (500, "preparation_failed")
    with monkeypatch.context() as patch:
        patch.setattr(request_loop, "read_content", failing(error if not isinstance(error, OSError) else MemoryError()))
        assert post(server.url, {**HI, "messages": shown("What?", picture(77))})[0] == 500
    assert server.engine.failure is None and server.idle() and post(server.url, HI)[0] == 200


def test_with_several_ranks_a_request_is_its_own_until_they_hear_of_it(
    session: InferenceSession, monkeypatch: pytest.MonkeyPatch, image: str
) -> None:
    loop = ServedLoop(session)
    monkeypatch.setattr(session.ranks, "size", 2)
    with monkeypatch.context() as patch:
        patch.setattr(session, "add", failing(ConnectionError("rank 1 ended")))
        with pytest.raises(ConnectionError, match="rank 1 ended"):
            take(loop, image)
    monkeypatch.setattr(session.prompts, "encode", failing(OSError("gone")))
    with pytest.raises(PreparationFailed):
        take(loop, image)


def test_a_failure_after_the_scheduler_took_the_request_is_no_longer_its_own(
    session: InferenceSession, monkeypatch: pytest.MonkeyPatch, image: str
) -> None:
    monkeypatch.setattr(session, "add", failing(RuntimeError("half of it is kept")))
    with pytest.raises(RuntimeError, match="half of it is kept"):
        take(ServedLoop(session), image)
