"""From a request to the engine: what ends while choices are waited for."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

import pytest

from mindspeed_vita.inference.sampling import SamplingParams
from mindspeed_vita.serving.completions import _merged
from mindspeed_vita.serving.engine import Place
from tests.unit.serving.test_engine import asked


def test_a_choice_that_fails_in_any_way_ends_the_wait() -> None:
    class Failing:
        async def submit(self, *_: Any, **__: Any) -> AsyncGenerator[Any, None]:
            raise ZeroDivisionError("a fault of ours")
            yield

    async def work() -> None:
        async for _ in _merged(Failing(), asked(), [SamplingParams(), SamplingParams()], Place(lambda _: None, None)):  # type: ignore[arg-type]
            pass

    with pytest.raises(ZeroDivisionError, match="a fault of ours"):
        asyncio.run(asyncio.wait_for(work(), 20))
