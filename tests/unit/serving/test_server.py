"""The server's run without a model: what it says when it cannot listen."""

from __future__ import annotations

import pytest
from fastapi import FastAPI

from mindspeed_vita.serving import server
from mindspeed_vita.serving.engine import Engine
from tests.unit.serving.test_engine import CountingLoop


def test_a_server_that_cannot_listen_does_not_say_that_it_does(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    async def fail(*_: object, **__: object) -> None:
        raise OSError("no descriptor is left")

    monkeypatch.setattr(server._Server, "serve", fail)
    with server.bind("127.0.0.1", 0) as bound, pytest.raises(OSError, match="no descriptor is left"):
        server.run(FastAPI(), Engine(CountingLoop()), bound, drain=1, listening="serving tiny")
    assert "serving tiny" not in capfd.readouterr().err
