"""The reasons that are counted for requests without an answer."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, Counter

from mindspeed_vita.serving.request_log import RequestLog


class Counts:
    """The two counters of Metrics that the log uses."""

    def __init__(self) -> None:
        registry = CollectorRegistry()
        self.responses = Counter("responses", "x", ("path", "status"), registry=registry)
        self.rejected = Counter("rejected", "x", ("reason",), registry=registry)


def test_a_fault_of_the_server_is_not_counted_as_the_clients() -> None:
    async def fails(scope: Any, receive: Any, send: Any) -> None:
        raise ZeroDivisionError

    counts, lines = Counts(), []
    log = RequestLog(fails, counts, lines.append)  # type: ignore[arg-type]
    with pytest.raises(ZeroDivisionError):
        asyncio.run(log({"type": "http", "method": "GET"}, None, None))  # type: ignore[arg-type]
    reasons = {sample.labels["reason"]: sample.value for sample in counts.rejected.collect()[0].samples if sample.name == "rejected_total"}
    assert reasons == {"server_error": 1.0} and lines[0]["status"] == 500
