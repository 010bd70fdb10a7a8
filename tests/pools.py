"""Worker pools, one per line of megatron-core, shared by every test that needs more than one process."""

from __future__ import annotations

import os
from typing import Callable, Iterator

import pytest

from mindspeed_vita.engine.parity.pool import LayoutPool

OVERLAY = "VITA_MCORE_012"
"""Environment variable with a folder that holds megatron-core 0.12.3."""
LINES = ("installed", "0.12")
Pools = Callable[[str], LayoutPool]


@pytest.fixture(scope="session")
def pools() -> Iterator[Pools]:
    """Four workers on a line of megatron-core, made when first asked for: pools("installed"), pools("0.12")."""
    made: dict[str, LayoutPool] = {}

    def get(line: str) -> LayoutPool:
        if line not in made or made[line].closed:
            overlay = None if line == "installed" else os.environ.get(OVERLAY)
            if line != "installed" and not overlay:
                pytest.skip(f"{OVERLAY} is not set to a folder with megatron-core 0.12.3; scripts/test.sh makes one")
            made[line] = LayoutPool(4, overlay)
        return made[line]

    yield get
    for pool in made.values():
        pool.close()


@pytest.fixture(scope="session", params=LINES)
def layout_pool(request: pytest.FixtureRequest, pools: Pools) -> LayoutPool:
    """Each test runs on both lines."""
    return pools(request.param)
