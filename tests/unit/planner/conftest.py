"""A process for traces: they leave tensors without memory in caches, so no other test may share it."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import pytest

Call = Callable[..., Any]


@pytest.fixture(scope="session")
def elsewhere() -> Iterator[Call]:
    """elsewhere(function, *args, **kwargs) calls a function in that process and returns its result."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        yield lambda function, *args, **kwargs: pool.submit(function, *args, **kwargs).result()


@pytest.fixture(scope="session")
def with_memory() -> Iterator[Call]:
    """The same for steps on real tensors, in a process of their own."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        yield lambda function, *args, **kwargs: pool.submit(function, *args, **kwargs).result()
