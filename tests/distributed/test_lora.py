"""Adapters train the same curve under every layout, and continue under another one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mindspeed_vita.config import recipe_to_dict
from tests.tiny_data import TinyData, read_metrics

pytestmark = [pytest.mark.distributed, pytest.mark.slow]
RUN = "tests.distributed.layout_runs:run"
LORA = {"rank": 4, "alpha": 8, "parts": ["language", "vision", "projector"]}
LAYOUTS = [(2, 1, 1, 1), (1, 2, 1, 1), (1, 1, 2, 1), (2, 1, 2, 1)]
"""tp, pp, cp, dp."""
# fp32 sums in another order
SAME = {"rel": 1e-5}


@pytest.fixture(scope="module")
def start(tiny: TinyData, pools: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The base."""
    directory = tmp_path_factory.mktemp("start")
    pools("installed").run(RUN, content=recipe_to_dict(tiny.recipe(directory)), stop=1)
    return directory


def content(tiny: TinyData, start: Path, directory: Path, **train: Any) -> dict[str, Any]:
    settings = {"steps": 6, **train}
    return recipe_to_dict(tiny.recipe(directory, lora=LORA, checkpoint={"init_from": str(start)}, train=settings))


@pytest.fixture(scope="module")
def expected(tiny: TinyData, start: Path, pools: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[float]]:
    """Losses and gradient norms of one process."""
    directory = tmp_path_factory.mktemp("expected")
    pools("installed").run(RUN, content=content(tiny, start, directory))
    return curves(directory)


def curves(directory: Path) -> dict[str, list[float]]:
    return {key: read_metrics(directory, key) for key in ("loss", "grad_norm")}


def assert_same(found: dict[str, list[float]], expected: dict[str, list[float]]) -> None:
    for key in expected:
        assert found[key] == pytest.approx(expected[key], **SAME), key


def test_layouts_train_one_curve(tiny: TinyData, start: Path, expected: dict[str, list[float]], layout_pool: Any, tmp_path: Path):
    for sizes in LAYOUTS:
        directory = tmp_path / "_".join(map(str, sizes))
        # recomputed layers too: their inputs come from frozen tables
        layout_pool.run(RUN, *sizes, content=content(tiny, start, directory, recompute="full" if sizes[0] == 2 else "none"))
        assert_same(curves(directory), expected)


def test_a_run_continues_under_another_layout(tiny: TinyData, start: Path, expected: dict[str, list[float]], pools: Any, tmp_path: Path):
    pool = pools("installed")
    for sizes, stop in (((2, 1, 1, 1), 2), ((1, 2, 1, 1), 4), ((1, 1, 2, 2), None)):
        pool.run(RUN, *sizes, content=content(tiny, start, tmp_path), stop=stop)
    assert_same(curves(tmp_path), expected)
