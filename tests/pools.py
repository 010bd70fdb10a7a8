"""Worker pools, one per line of megatron-core, shared by every test that needs more than one process."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any, Callable, Iterator

import pytest

from mindspeed_vita.checks.parity.pool import LayoutPool

OVERLAYS = {"0.12": "VITA_MCORE_012", "newest": "VITA_MCORE_NEWEST"}
"""Line of megatron-core -> environment variable with a folder that holds it."""
LINES = ("installed", *OVERLAYS)
OLDEST_PYTHON = {"newest": (3, 12)}
"""What a line asks of Python, where that is more than the package asks."""
Pools = Callable[[str], LayoutPool]


def overlay(line: str) -> str:
    """The folder with a line of megatron-core. Skips the test where there is none, or where Python is too old for it."""
    oldest = OLDEST_PYTHON.get(line, sys.version_info[:2])
    if sys.version_info[:2] < oldest:
        pytest.skip(f"the {line} line of megatron-core needs Python {'.'.join(map(str, oldest))}; see scripts/test_lines.sh")
    folder = os.environ.get(OVERLAYS[line])
    if not folder:
        pytest.skip(f"{OVERLAYS[line]} is not set to a folder with megatron-core; scripts/test_lines.sh makes one")
    if not Path(folder, "megatron", "core").is_dir():
        pytest.fail(f"{OVERLAYS[line]}={folder} holds no megatron/core, so the installed one would be taken unnoticed")
    return folder


@pytest.fixture(scope="session")
def pools() -> Iterator[Pools]:
    """Four workers on a line of megatron-core, made when first asked for: pools("installed"), pools("0.12"), pools("newest")."""
    made: dict[str, LayoutPool] = {}

    def get(line: str) -> LayoutPool:
        if line not in made or made[line].closed:
            made[line] = LayoutPool(4, None if line == "installed" else overlay(line))
        return made[line]

    yield get
    for pool in made.values():
        pool.close()


@pytest.fixture(scope="session", params=LINES)
def layout_pool(request: pytest.FixtureRequest, pools: Pools) -> Any:
    """Each test runs on every line."""
    pools(request.param)  # skips here where the line is missing
    return _LinePool(pools, request.param)


class _LinePool:
    """A line's LayoutPool: the one that lives now, so that a test that failed and ended the workers fails alone."""

    def __init__(self, pools: Pools, line: str) -> None:
        self._pools, self._line = pools, line

    def __getattr__(self, name: str) -> Any:
        return getattr(self._pools(self._line), name)
