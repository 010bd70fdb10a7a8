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
LAYOUTS: dict[str, tuple[dict[str, int], dict[str, Any], dict[str, Any]]] = {
    "tp2": ({"tp": 2}, {}, {"recompute": "full_but_attention"}),
    "pp2": ({"pp": 2}, {}, {"recompute": "mlp"}),
    "cp2": ({"cp": 2}, {}, {}),
    "tp2_cp2": ({"tp": 2, "cp": 2}, {}, {"recompute": "full", "offload": "inputs"}),
    "uneven": ({"pp": 2}, {"stage_layers": [1, 3]}, {"recompute": "full", "recompute_layers": 1}),
    "interleaved": ({"pp": 2, "dp": 2}, {"virtual_stages": 2}, {"recompute": "full"}),
    "overlap": ({"dp": 2}, {"overlap_grad_reduce": "always", "overlap_param_gather": "always"}, {}),
}
"""Sizes of the axes, the rest of the parallel section, and the train section."""
LAYERS = {"language": {"num_layers": 4}}
PARTS: tuple[tuple[str, ...], ...] = (("language",), ("projector",), ("vision",))
# fp32 sums in another order
SAME = {"rel": 1e-5}


@pytest.fixture(scope="module")
def start(tiny: TinyData, pools: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The base."""
    directory = tmp_path_factory.mktemp("start")
    pools("installed").run(RUN, content=recipe_to_dict(tiny.recipe(directory, model=LAYERS)), stop=1)
    return directory


def content(
    tiny: TinyData, start: Path, directory: Path, *, lora: Any = LORA, parallel: Any = None, steps: int = 4, **train: Any
) -> dict[str, Any]:
    sections = {"checkpoint": {"init_from": str(start)}, "train": {"steps": steps, **train}, "parallel": parallel or {}}
    return recipe_to_dict(tiny.recipe(directory, model=LAYERS, lora=lora, **sections))


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
    for name, (sizes, parallel, train) in LAYOUTS.items():
        layout_pool.run(RUN, **sizes, content=content(tiny, start, tmp_path / name, parallel=parallel, **train))
        assert_same(curves(tmp_path / name), expected)


def test_stages_without_adapters_pass_gradients_on(tiny: TinyData, start: Path, pools: Any, tmp_path: Path):
    """Adapters of the decoder alone, and of the first stage alone."""
    splits = {"one": ({}, {}), "pp2": ({"pp": 2}, {}), "interleaved": ({"pp": 2}, {"virtual_stages": 2})}
    for part in PARTS:
        found = {}
        for name, (sizes, parallel) in splits.items():
            directory = tmp_path / f"{part[0]}_{name}"
            told = content(tiny, start, directory, lora={**LORA, "parts": list(part)}, parallel=parallel, steps=3)
            pools("installed").run(RUN, **sizes, content=told)
            found[name] = curves(directory)
        assert min(found["one"]["grad_norm"]) > 0
        for name in ("pp2", "interleaved"):
            assert_same(found[name], found["one"])


def test_a_run_continues_under_another_layout(tiny: TinyData, start: Path, expected: dict[str, list[float]], pools: Any, tmp_path: Path):
    pool = pools("installed")
    for sizes, stop in (((2, 1, 1, 1), 2), ((1, 2, 1, 1), 3), ((1, 1, 2, 2), None)):
        pool.run(RUN, *sizes, content=content(tiny, start, tmp_path), stop=stop)
    assert_same(curves(tmp_path), expected)
