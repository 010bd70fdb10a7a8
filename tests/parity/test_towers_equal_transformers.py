"""InternViT-6B, SigLIP-400M and CLIP-L at their real widths equal transformers' own, whole and cut over two tensor-parallel ranks."""

from __future__ import annotations

from typing import Any

import pytest

from mindspeed_vita.checks.parity.check import RUN, compare
from mindspeed_vita.checks.parity.pool import LayoutPool
from tests.parity.tower_runs import CASES
from tests.pools import Pools

HEADS = {"intern_vit_6b": {1: 25, 2: 13}, "siglip_400m": {1: 16, 2: 8}, "clip_l": {1: 16, 2: 8}}
# Measured: features 7e-7, gradients 2e-6 of their absmax (fp32 summation order).
TOLERANCE = 1e-5


@pytest.mark.parametrize("tp", [1, 2])
@pytest.mark.parametrize("case", CASES)
def test_tower_equals_transformers_to_1e5(pools: Pools, case: str, tp: int) -> None:
    for found in pools("installed").run("tests.parity.tower_runs:run", tp, case=case):
        assert found["error"] <= TOLERANCE and found["gradient"] <= TOLERANCE, found
        assert found["heads"] == HEADS[case][tp] and found["zero"], found
        assert bool(found["padded"]) == (case == "intern_vit_6b" and tp == 2), "only 25 heads over 2 ranks need a zero head"


SMALL = {
    "qk_norm": {"num_heads": 3, "hidden_size": 48, "qkv_bias": False, "qk_norm": True, "norm": "rms_norm"},
    "siglip": {"tower": "siglip"},
    "clip": {"tower": "clip"},
}


@pytest.mark.parametrize(("tp", "pp", "cp", "dp"), [(2, 1, 1, 1), (2, 1, 2, 1)], ids=["tp2", "tp2-cp2"])
@pytest.mark.parametrize("name", SMALL)
def test_a_step_with_the_tower_cut_equals_one_process(
    layout_pool: LayoutPool, name: str, tp: int, pp: int, cp: int, dp: int, tmp_path: Any
) -> None:
    """Loss and every gradient; 3 heads over 2 ranks are padded."""
    vision: dict[str, Any] = SMALL[name]
    full = layout_pool.run("mindspeed_vita.checks.parity.step:initial_weights", vision=vision)[0]
    arguments = {"folder": str(tmp_path), "full": full, "resets": True, "head": "masked", "modules": ("vision", "projector", "language")}
    expected = layout_pool.run(RUN, vision=vision, **arguments)[0]
    result = compare(layout_pool.run(RUN, tp, pp, cp, dp, vision=vision, vision_parallel="tensor", **arguments)[0], expected)
    assert result.equal, result
